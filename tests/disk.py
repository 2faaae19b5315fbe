"""A disk that is full, and grows when a test lets it."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PAGE = 4096


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """Mount a file system without free space at `folder`; gives a function that leaves it so many bytes in all."""
    folder.mkdir()
    _mount(folder, f"size={PAGE}") or pytest.skip("only root may mount a small disk")
    try:
        (folder / "filler").write_bytes(bytes(PAGE))
        yield lambda size: _mount(folder, f"remount,size={PAGE + size}") or pytest.fail("the disk does not grow")
    finally:
        # Lazily: what is still mapped into memory keeps a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(folder: Path, options: str) -> bool:
    try:
        return not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        ).returncode
    except FileNotFoundError:
        return False
