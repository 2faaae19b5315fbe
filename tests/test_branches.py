"""A run that switches its balance starts from its parent's state, to the same bytes as from the first step."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe import cli
from moe.branches import branch, branch_folder
from moe.config import RunConfig
from moe.data.order import TrainingBatches
from tests.conftest import tiny_config
from tests.stage import saved_steps, stop_before, training

MICRO, GLOBAL = {"window": 1, "weight": 0.5}, {"window": 12, "weight": 0.5}
SWITCH = [{**MICRO, "end_step": 6}, {**GLOBAL, "start_step": 6}]
PAST = {"window": 12, "estimator": "ema", "half_life": 2.0}
SHUFFLED = {"window": 2, "shuffled": True}
FILES = ("train.jsonl", "train.json", "counts.parquet", "model/model.safetensors")


def config_of(terms: list[dict[str, Any]]) -> RunConfig:
    domain = {"name": "law", "source": {"corpus": "china-law"}}
    raw = {"data": {"domains": [domain]}, "train": {"batch_sequences": 12, "micro_sequences": 2}}
    return RunConfig.model_validate(raw | {"balance": {"terms": terms}})


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (SWITCH, ([MICRO], 6)),
        ([{**GLOBAL, "start_step": 9}, {**MICRO, "end_step": 7}], ([MICRO], 7)),
        ([GLOBAL, {**MICRO, "start_step": 9, "end_step": 20}], ([GLOBAL], 9)),
        ([{**GLOBAL, "end_step": 3}], ([GLOBAL], 3)),
        ([{**GLOBAL, "start_step": 3}], ([], 3)),
        ([{**GLOBAL, "end_step": 400}], None),  # the last step is 400
        ([GLOBAL, MICRO], None),
        ([], None),
        ([PAST, {**MICRO, "start_step": 5}], ([PAST], 5)),
        ([{**PAST, "end_step": 5}, MICRO], ([PAST, MICRO], 5)),
        ([MICRO, {**PAST, "start_step": 5}], None),  # the parent has gathered no past of it
        ([{**MICRO, "start_step": 5}, PAST], None),  # the parent's past has another place
        ([PAST, {**PAST, "half_life": 3.0, "start_step": 5}], None),
        ([SHUFFLED, {**MICRO, "start_step": 5}], ([SHUFFLED], 5)),
        ([MICRO, {**SHUFFLED, "start_step": 5}], None),
    ],
)
def test_the_parent_has_the_terms_of_before_the_first_switch(terms: list[dict], expected: tuple | None) -> None:
    found = branch(config_of(terms))
    if expected is None:
        assert found is None
    else:
        parent, step = expected
        assert found == (config_of(parent), step)


def run(config: RunConfig, packed: Path, folder: Path, *args: object) -> Path:
    """Train by the command line in this process; the folder of the run."""
    assert cli.main([str(arg) for arg in [*training(folder, packed, config), *args]]) == 0
    return folder / "run"


@pytest.mark.parametrize("extra", [[], [{**PAST, "weight": 0.1}]])
def test_a_branch_ends_with_the_bytes_of_the_run_from_the_first_step(tiny_data, tmp_path: Path, extra) -> None:
    data, packed = tiny_data
    child = tiny_config(data, balance={"terms": [*extra, *SWITCH], "bias": {"window": 12, "rate": 0.01}})
    found = branch(child)
    assert found
    parent, step = found
    assert run(parent, packed, tmp_path / "plain").is_dir()
    kept = run(parent, packed, tmp_path / "parent", "--keep", step)
    # What is left for others changes nothing of the parent itself.
    assert all((kept / file).read_bytes() == (tmp_path / "plain" / "run" / file).read_bytes() for file in FILES)
    left = branch_folder(tmp_path / "parent" / "state", step)
    assert [int(path.name[:8]) for path in left.glob("*.safetensors")] == [step]
    alone = run(child, packed, tmp_path / "alone")
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        tokens = TrainingBatches.tokens
        patch.setattr(TrainingBatches, "tokens", lambda self, step: steps.append(step) or tokens(self, step))
        branched = run(child, packed, tmp_path / "branched", "--from", left)
    assert min(steps) == step, "the shared steps are not trained again"
    for file in FILES:
        assert (branched / file).read_bytes() == (alone / file).read_bytes(), file
    lines = [json.loads(line) for line in (branched / "train.jsonl").read_text().splitlines()]
    assert [[value is not None for value in line["balance"]][-2:] for line in lines] == [
        [line["step"] <= step, line["step"] > step] for line in lines
    ]


def test_without_the_parents_state_a_branch_is_trained_from_the_first_step_and_says_so(
    tiny_data, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, packed = tiny_data
    child = tiny_config(data, balance={"terms": SWITCH})
    alone = run(child, packed, tmp_path / "alone")
    capfd.readouterr()
    branched = run(child, packed, tmp_path / "branched", "--from", tmp_path / "missing")
    assert "missing: no state of the parent; trained from the first step" in capfd.readouterr().err
    assert all((branched / file).read_bytes() == (alone / file).read_bytes() for file in FILES)


def left_by_a_parent(tiny_data, tmp_path: Path) -> tuple[RunConfig, Path, Path]:
    """A run that switches, its data, and what its parent has left for it."""
    data, packed = tiny_data
    child = tiny_config(data, balance={"terms": SWITCH})
    found = branch(child)
    assert found
    run(found[0], packed, tmp_path / "parent", "--keep", 6)
    return child, packed, branch_folder(tmp_path / "parent" / "state", 6)


def test_a_branch_that_was_interrupted_goes_on_from_its_own_state(
    tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, packed, left = left_by_a_parent(tiny_data, tmp_path)
    folder = tmp_path / "branched"
    command = [str(arg) for arg in [*training(folder, packed, child), "--from", left]]
    with monkeypatch.context() as patch:
        stop_before(10, InterruptedError, patch)
        with pytest.raises(InterruptedError):
            cli.main(command)
    assert saved_steps(folder)[-1] == 8
    assert cli.main(command) == 0
    alone = run(child, packed, tmp_path / "alone")
    assert all((folder / "run" / file).read_bytes() == (alone / file).read_bytes() for file in FILES)


def test_a_damaged_state_of_the_parent_costs_time_alone(tiny_data, tmp_path: Path) -> None:
    child, packed, left = left_by_a_parent(tiny_data, tmp_path)
    (checkpoint,) = left.glob("*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"?")
    branched = run(child, packed, tmp_path / "branched", "--from", left)
    alone = run(child, packed, tmp_path / "alone")
    assert all((branched / file).read_bytes() == (alone / file).read_bytes() for file in FILES)


def test_a_run_that_never_switches_has_no_parent_to_start_from(tiny_data, tmp_path: Path, capsys) -> None:
    command = [*training(tmp_path, tiny_data[1], tiny_config(tiny_data[0])), "--from", tmp_path]
    assert cli.main([str(arg) for arg in command]) == 1
    assert "no balance term of the run switches, so it has no parent" in capsys.readouterr().err
