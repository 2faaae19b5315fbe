"""What made a record, and files that are complete whenever they exist."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moe.locks import locked
from moe.settings import digest

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "lm_eval", "numpy", "snakemake")
WITHOUT_RECORDS = (
    "analysis", "report", "conformance", "cli.py", "cost.py", "interruption.py", "launch.py", "locks.py", "memory.py",
    "progress.py", "reference.py", "schema.py", "size.py", "sweep.py", "warm.py",
)  # fmt: skip
"""Folders and files whose code decides on no value of a record: it plans, starts and watches stages, or draws."""


@cache
def code_fingerprint(*, drawing: bool = False) -> str:
    """Short hash of the package's `.py` files that make records, names included, and with `drawing` of those that turn
    records into tables and figures too; it changes with any edit of them."""
    root = Path(__file__).parent
    content = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if drawing or path.relative_to(root).parts[0] not in WITHOUT_RECORDS:
            content.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can move a result; a package that is absent is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def stamp(schema: str, *, device: str, **fields: Any) -> dict[str, Any]:
    """Head of a record: its schema, then `fields` (run, seed, config hash ...), code, versions and device."""
    return {
        "schema": schema,
        **fields,
        "code": code_fingerprint(),
        "versions": package_versions(),
        "device": device,
    }


def run_stamp(schema: str, config: Any, *, run: str, device: str, **fields: Any) -> dict[str, Any]:
    """Head of a record of one run, whose `RunConfig` is `config`."""
    return stamp(schema, device=device, run=run, seed=config.seed, config_hash=digest(config), **fields)


def cpu_name() -> str:
    """The processor as the kernel names it, with its core count."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def device_name(device: Any) -> str:
    """What a `torch.device` is called: the processor, or the accelerator as its driver names it."""
    if device.type == "cpu":
        return cpu_name()
    import torch  # not needed to plan, nor to draw

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `path` that goes after the block; those of killed processes go before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    with contextlib.ExitStack() as stack:
        # A new folder has no lock of its own for a moment, and would be taken for one that a killed process left.
        with locked(path.parent, fcntl.LOCK_EX):
            for left in path.parent.glob(f"{glob.escape(prefix)}????????"):
                with locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as abandoned:
                    if abandoned:
                        shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder, fcntl.LOCK_SH))
        yield folder


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it is synced and renamed to `path` if the block succeeds, else removed."""
    with scratch_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    _sync(path.parent)


@contextlib.contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; it takes the place of `path` if the block succeeds, else goes."""
    with scratch_folder(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for name, _, files in os.walk(temporary):
            for file in files:
                _sync(Path(name, file))
            _sync(Path(name))
        if path.exists():  # renamed, not removed: a kill must not leave half of it
            path.replace(folder / "before")
        temporary.replace(path)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove `path` as a whole: a kill leaves all of it or nothing."""
    with scratch_folder(path) as folder:
        path.replace(folder / path.name)


def _sync(path: Path) -> None:
    """Wait until the disk has the file's content, or the folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, complete or not at all; NaN is refused (`ValueError`)."""
    with complete_file(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
