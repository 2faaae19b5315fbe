"""Locks that end with their process: a kill leaves none behind."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path, kind: int) -> Iterator[bool]:
    """Lock a folder, `kind` as of `fcntl.flock`; gives False if it cannot be had, or the file system has no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive(path: Path, *, waiting: str) -> Iterator[tuple[int, bool]]:
    """Hold the lock file `path`; if another process has it, print `waiting` and wait for that process to end.

    Gives the open file, which child processes may inherit to hold the lock too, and whether it had to wait. The file
    goes with the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    print(waiting, file=sys.stderr, flush=True)
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
            # The holder before has removed the file: another process may hold the one that is there now.
            if not _is_open(file.fileno(), path):
                continue
            try:
                yield file.fileno(), waited
            finally:
                path.unlink(missing_ok=True)
            return


def _is_open(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


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
