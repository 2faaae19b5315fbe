"""A disk that runs full at any write: one sentence, nothing half-written, and with more space the same call goes on."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moe import cli
from moe.data.wheels import fetch_wheel
from moe.settings import ConfigError
from tests.conftest import tiny_config
from tests.data.corpora import make_wheel
from tests.disk import PAGE, small_disk
from tests.report.synthetic import write_records

Arguments = Callable[[Path], list[object]]
TIMED = ("speed.jsonl", "latency.json", "estimators.json")  # files that no two calls make alike
HARDWARE = '{"log_every": 1, "checkpoint_every": 2}'


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is under its final name."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "filler"]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not name.startswith("state/") and not any(part.startswith(".") for part in name.split("/"))
    }


def check_finished_by_and_by(
    arguments: Arguments, step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, fresh: bool = False
) -> None:
    """Call a stage on a disk that grows by `step` bytes until the call succeeds; it must have failed before.

    With `fresh` every call finds an empty disk, and runs full at its own place.
    """

    def call(folder: Path) -> int:
        return cli.main([str(argument) for argument in arguments(folder)])

    assert call(tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    capsys.readouterr()
    disk = tmp_path / "disk"
    with small_disk(disk) as grow:
        size = 0
        while call(disk) != 0:
            error = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
            assert len(error) == 1 and "no space left on" in error[0], error
            check_whole(contents(disk), whole)
            assert list(disk.rglob(".*")) == []
            size += step
            grow(size)
            for path in disk.iterdir() if fresh else ():
                if path.is_dir():
                    shutil.rmtree(path)
        assert size, "the disk was never full"
        found = contents(disk)
        check_whole(found, whole)
        assert found.keys() == whole.keys()
        assert not (disk / "state").exists()


def check_whole(found: dict[str, bytes], whole: dict[str, bytes]) -> None:
    for name, content in found.items():
        if Path(name).name in TIMED:
            assert [json.loads(line) for line in (content.splitlines() if name.endswith("l") else [content])]
        else:
            assert content == whole[name], name


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a trained run of two steps and of its data."""
    config, packed = tiny_data
    folder = tmp_path_factory.mktemp("trained") / "run"
    folder.mkdir()
    small = {"hidden_size": 16, "num_layers": 1, "num_experts": 4, "expert_size": 8}
    config = tiny_config(config, model=small, train={"steps": 2, "warmup_steps": 0})
    (folder / "config.json").write_text(config.model_dump_json())
    where = ["--config", folder / "config.json", "--data", packed, "--state", folder.parent / "state"]
    assert cli.main(["train", *map(str, where), "--hardware", HARDWARE]) == 0
    return folder, packed


@pytest.mark.parametrize("fresh", [False, True])
def test_training(fresh: bool, trained, tmp_path: Path, capsys) -> None:
    run, packed = trained

    def arguments(folder: Path) -> list[object]:
        # The run's folder is that of its config, which has to be there before the disk is full.
        (folder / "run").mkdir(parents=True, exist_ok=True)
        config = folder / "run" / "config.json"
        if not config.exists():
            config.symlink_to(run / "config.json")
        return ["train", "--config", config, "--data", packed, "--state", folder / "state", "--hardware", HARDWARE]

    check_finished_by_and_by(arguments, PAGE, tmp_path, capsys, fresh=fresh)


@pytest.mark.parametrize("stage", ["evaluate", "latency", "estimators"])
def test_measurements(stage: str, trained, tmp_path: Path, capsys) -> None:
    run, packed = trained
    settings = {
        "evaluate": ["--settings", '{"tasks": {}}'],
        "latency": ["--settings", '{"warmup": 0, "repeats": 1, "prompt_tokens": 4, "decode_tokens": 2}'],
        "estimators": ["--settings", '{"every": 2, "passes": [2], "repeats": 2}'],
    }

    def arguments(folder: Path) -> list[object]:
        out = folder / f"{stage}.json"
        where: dict[str, list[object]] = {
            "evaluate": ["--run", run, packed, out],
            "latency": ["--run", run, packed, "--out", out],
            "estimators": ["--run", run, "--data", packed, "--state", folder / "state", "--out", out],
        }
        return [stage, *where[stage], *settings[stage]]

    check_finished_by_and_by(arguments, PAGE, tmp_path, capsys)


def test_data(tiny_data, tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.json"
    config.write_text(tiny_data[0].model_dump_json())
    check_finished_by_and_by(
        lambda folder: ["data", "--config", config, "--out", folder / "packed"], 2 * PAGE, tmp_path, capsys
    )


def test_plan(tmp_path: Path, capsys) -> None:
    check_finished_by_and_by(
        lambda folder: ["runs", "--scale", "smoke", "--out", folder / "runs.json"], PAGE, tmp_path, capsys
    )


@pytest.mark.parametrize(("stage", "step"), [("tables", 64), ("figures", 700), ("report", 256), ("reference", 64)])
def test_report(stage: str, step: int, tmp_path: Path, capsys) -> None:
    records, runs = write_records(tmp_path / "records", seeds=(1, 2))
    where: list[object] = ["--records", records, "--runs", runs]
    if stage == "report":
        for drawn in ("tables", "figures"):
            assert cli.main([drawn, *map(str, where), "--out", str(tmp_path / drawn)]) == 0
        where += ["--tables", tmp_path / "tables", "--figures", tmp_path / "figures"]
    check_finished_by_and_by(
        lambda folder: [stage, *where, "--out", folder / "out" / "it"], step << 10, tmp_path, capsys
    )


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(index)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    wheel, pin = make_wheel(index, {"tiny/text": random.Random(0).randbytes(10 * PAGE)})
    with small_disk(tmp_path / "disk") as grow:
        monkeypatch.setenv("MOE_CACHE", str(tmp_path / "disk" / "cache"))
        for size in range(0, 10 * PAGE, 3 * PAGE):
            grow(size)
            with pytest.raises(ConfigError, match="(?i)no space left .*in the cache"):
                fetch_wheel(pin.name, {pin.name: pin})
            assert list((tmp_path / "disk" / "cache" / "wheels").iterdir()) == []
        grow(100 * PAGE)
        assert fetch_wheel(pin.name, {pin.name: pin}).read_bytes() == wheel.read_bytes()
