"""Ctrl-C and SIGTERM: one sentence, a status of their own, nothing half-written, and the same command continues."""

import json
import signal
from pathlib import Path

import pytest

from moe.interruption import STATUS
from tests.conftest import tiny_config
from tests.data.corpora import ENGLISH, write_jsonl
from tests.stage import saved_steps, start, training, wait_until, weights


@pytest.mark.parametrize("number", STATUS)
def test_a_stage_that_is_stopped_leaves_nothing_and_says_one_sentence(number: signal.Signals, tmp_path: Path):
    text = write_jsonl(tmp_path / "text.jsonl", [f"{n} {' '.join(ENGLISH)}" for n in range(60_000)])
    domain = {"name": "english", "source": {"kind": "files", "paths": [str(text)]}}
    sizes = {"vocab_size": 400, "sequence_length": 32, "train_tokens": 9_000_000, "heldout_tokens": 640}
    (tmp_path / "config.json").write_text(json.dumps({"domains": [domain], **sizes}))
    out = tmp_path / "out" / "packed"
    process = start("data", "--config", tmp_path / "config.json", "--out", out)
    wait_until(lambda: list(tmp_path.glob("out/.packed.*/packed/tokenizer")), process)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == STATUS[number]
    assert error.startswith("error: ") and error.count("\n") == 1 and "run the same command again" in error
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_while_the_packages_load_is_one_sentence(number: signal.Signals):
    process = start("evaluate", "--run", "x", "x", "x")
    libraries = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "pydantic" in libraries.read_text(), process)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error.count("\n")) == (STATUS[number], 1)


def test_training_ends_its_step_at_sigterm_and_goes_on_from_there(tiny_data, tmp_path: Path):
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 60})
    whole = start(*training(tmp_path / "whole", packed, config))
    assert whole.wait() == 0
    command = training(tmp_path / "stopped", packed, config)
    for seen in (0, 20):
        process = start(*command)
        wait_until(lambda seen=seen: max(saved_steps(tmp_path / "stopped"), default=0) > seen, process)
        process.terminate()
        error = process.communicate(timeout=60)[1]
        assert process.returncode == STATUS[signal.SIGTERM], error
        step = saved_steps(tmp_path / "stopped")[-1]
        assert error == f"error: terminated after step {step} of 60; run the same command again to continue\n"
    assert start(*command).wait() == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"run"}
