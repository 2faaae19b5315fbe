"""How much memory does a command take? Measured by a process that is small itself."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPT = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""Linux counts for a child what the process that forks it holds at that moment, so a large one must not fork it."""


def peak_of(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Peak resident bytes of the largest process of a command; raises `RuntimeError` with what it says if it fails."""
    call = [sys.executable, "-c", SCRIPT, *command]
    done = subprocess.run(call, capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
