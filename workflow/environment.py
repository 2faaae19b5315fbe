"""Make `.venv` from requirements.txt, or do nothing if it is up to date; the Makefile calls this before its targets.

Standard library only, and no syntax that an older Python cannot read: it should get a sentence, not a traceback.
"""

import fcntl
import hashlib
import platform
import subprocess
import sys
from pathlib import Path

FOLDER = Path(".venv")


def main():
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"error: Python 3.11 or newer is needed, this is {platform.python_version()}: make PYTHON=python3.11")
    digest = hashlib.sha256(Path("requirements.txt").read_bytes()).hexdigest()[:16]
    stamp = FOLDER / f"complete-{digest}"
    with Path(f"{FOLDER}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: another call is making {FOLDER} in this folder; wait for it or stop it")
        if not stamp.exists():
            install(lock)
            stamp.touch()


def install(lock):
    """From scratch, since a killed installation leaves packages that pip can neither use nor replace.

    pip holds the lock too: it may outlive this process.
    """
    print(f"making {FOLDER} from requirements.txt, about two minutes", flush=True)
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(FOLDER)],
        [*pip, "install", "-qq", "--disable-pip-version-check", "-r", "requirements.txt"],
    ):
        status = subprocess.call(command, pass_fds=[lock.fileno()])
        if status:
            sys.exit(f"error: '{' '.join(command)}' failed with status {status}; run the same command again")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("error: interrupted; run the same command again to continue")
