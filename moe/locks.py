"""Locks that end with their process: a kill leaves none behind."""

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold the lock file `path`; if another process has it, print `waiting` and wait for that process to end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


_held = []  # open files whose locks last as long as this process


def join_workflow(folder: Path) -> bool:
    """Register this process as a Snakemake that works in `folder`; False if another one is alive there.

    The first one removes the locks that a killed Snakemake has left. Every process keeps a shared lock while it
    lives, so "first" means that nobody else holds any.
    """
    locks = folder / ".snakemake" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    file = (folder / ".snakemake" / "alive").open("w")
    _held.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        alone = False
    except OSError:  # a file system without locks: Snakemake's own are left as they are
        return True
    else:
        alone = True
        for lock in locks.glob("*.lock"):
            lock.unlink()
    fcntl.flock(file, fcntl.LOCK_SH)
    return alone
