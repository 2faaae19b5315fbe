"""Files that are complete whenever they exist, and what a killed writer leaves: nothing, once the next one has come."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe.provenance import (
    WITHOUT_RECORDS,
    complete_file,
    complete_folder,
    cpu_name,
    device_name,
    remove_folder,
    scratch_folder,
)

ROOT = Path(__file__).parents[1]
WRITER = """
import sys; from pathlib import Path; from moe import provenance
with getattr(provenance, sys.argv[1])(Path(sys.argv[2])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    print(temporary, flush=True); sys.stdin.read()
"""
KINDS = ["complete_file", "complete_folder", "scratch_folder"]


def writer(kind: str, path: Path) -> "subprocess.Popen[str]":
    """A process in mid-write of `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, kind, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_writer_leaves_goes_when_the_next_one_starts(kind: str, tmp_path: Path):
    process = writer(kind, tmp_path / "target")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    with scratch_folder(tmp_path / "target"):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_living_writer_has_and_what_other_targets_have_stays(kind: str, tmp_path: Path):
    process = writer(kind, tmp_path / "target")
    other = writer(kind, tmp_path / "target.json")
    other.kill()
    other.wait()
    try:
        with scratch_folder(tmp_path / "target"):
            assert len(list(tmp_path.iterdir())) == 3
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        process.communicate("")
    assert process.returncode == 0
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert len(left) == 1 and left.pop().startswith(".target.json.")


@pytest.mark.parametrize("kind", [complete_file, complete_folder])
def test_a_block_that_fails_leaves_what_was_there_before(kind, tmp_path: Path):
    def write(content: str, *, fail: bool) -> None:
        with kind(tmp_path / "target") as temporary:
            (temporary / "file" if kind is complete_folder else temporary).write_text(content)
            if fail:
                raise ZeroDivisionError

    write("first", fail=False)
    with pytest.raises(ZeroDivisionError):
        write("second", fail=True)
    target = tmp_path / "target"
    assert (target / "file" if kind is complete_folder else target).read_text() == "first"
    write("third", fail=False)
    assert (target / "file" if kind is complete_folder else target).read_text() == "third"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", [complete_file, complete_folder])
def test_the_content_is_on_the_disk_before_the_name_and_then_the_name_is(kind, tmp_path, monkeypatch):
    synced: list[str] = []
    real = os.fsync

    def record(handle: int) -> None:
        synced.append(f"{Path(os.readlink(f'/proc/self/fd/{handle}')).name}, {(tmp_path / 'target').exists()}")
        real(handle)

    monkeypatch.setattr(os, "fsync", record)
    with kind(tmp_path / "target") as temporary:
        if kind is complete_folder:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "file").write_text("")
        else:
            temporary.write_text("")
    inside = ["inner, False", "file, False"] if kind is complete_folder else []
    assert sorted(synced[:-1]) == sorted([*inside, "target, False"])
    assert synced[-1] == f"{tmp_path.name}, True"


def test_a_removed_folder_leaves_nothing(tmp_path: Path):
    (tmp_path / "state" / "inner").mkdir(parents=True)
    remove_folder(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_named_as_its_driver_names_it():
    assert device_name(torch.device("cpu")) == cpu_name()
    assert f"{os.cpu_count()} cores" in cpu_name()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_named_as_its_driver_names_it():
    assert device_name(torch.device("cuda")) == torch.cuda.get_device_name()


def imported(path: Path) -> set[Path]:
    """Files of the package that a file of the package imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("moe.")}
    return {file for file in found if file.is_file()}


def test_what_is_left_out_of_the_fingerprint_of_the_code_computes_nothing_that_a_record_holds():
    stages = ("train.py", "evaluate.py", "latency.py", "estimators.py", "data/packing.py")
    reached, new = set(), {ROOT / "moe" / stage for stage in stages}
    while new:
        reached |= new
        new = {file for path in new for file in imported(path)} - reached
    names = {file.relative_to(ROOT / "moe") for file in reached}
    left_out = {str(name) for name in names if name.parts[0] in WITHOUT_RECORDS}
    assert left_out == {"interruption.py", "launch.py", "locks.py", "progress.py"}
    assert {Path("model/router.py"), Path("balance/losses.py")} <= names
    assert all((ROOT / "moe" / name).exists() for name in WITHOUT_RECORDS)
