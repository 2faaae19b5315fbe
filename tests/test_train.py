"""Training: neutral settings change nothing, an interruption leaves no trace, and the record says what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe.config import RunConfig
from moe.data.order import TrainingBatches
from moe.model.build import BIAS_FILE, load_model, routers
from moe.model.objective import Objective
from moe.report.record_types import CurveLine
from moe.scale import HardwareConfig
from moe.settings import ConfigError, parse
from moe.step import split_batch
from moe.train import train
from tests.conftest import tiny_config
from tests.stage import saved_steps, stop_before


def run(config: RunConfig, data_folder: Path, folder: Path, *, skip_nonfinite: bool = False, **hardware) -> dict:
    """Train in this process; the run's `train.json`."""
    train(
        config,
        run="tiny",
        data_folder=data_folder,
        run_folder=folder,
        state_folder=folder / "state",
        hardware=HardwareConfig(**{"log_every": 4, "checkpoint_every": 4, **hardware}),
        skip_nonfinite=skip_nonfinite,
    )
    return json.loads((folder / "train.json").read_text())


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["lm_loss"] for line in (folder / "train.jsonl").read_text().splitlines()]


def test_the_record_is_complete_and_the_loss_falls(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    record = run(tiny_config(config, train={"steps": 40}), packed, tmp_path)
    first, *_, last = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert record["final"] == last
    assert last["step"] == 40 and last["tokens"] == 40 * 12 * 32 == record["tokens"]
    assert last["lm_loss"] < first["lm_loss"]
    assert len(last["balance"]) == 1 and len(last["balance"][0]) == 2
    for key in ("max_vio_global", "max_vio_micro", "load_entropy", "dead_experts", "z_loss"):
        assert len(last[key]) == 2, key
    speed = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in speed] == [4 * (i + 1) for i in range(10)]
    assert set(speed[-1]["seconds"]) == {"data", "forward", "sync", "backward", "optimizer"}
    assert not (tmp_path / "state").exists()


def test_weight_zero_equals_no_term_and_a_term_that_has_not_started(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    hashes = set()
    for i, terms in enumerate(([], [{"window": 1, "weight": 0.0}], [{"window": 1, "weight": 1.0, "start_step": 4}])):
        # Compared after 4 steps: the last term acts from the fifth on, so its run is 4 steps of the longer schedule.
        settings = {"steps": 5, "learning_rate": 1e-3, "final_learning_rate": 1e-3, "warmup_steps": 0}
        folder = tmp_path / str(i)
        run(tiny_config(config, balance={"terms": terms}, train=settings), packed, folder, log_every=1)
        hashes.add(tuple(losses(folder)[:5]))
    assert len(hashes) == 1


def test_the_balance_term_changes_training(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    run(tiny_config(config), packed, tmp_path / "a")
    run(tiny_config(config, balance={"terms": [{"window": 1, "weight": 0.05}]}), packed, tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


@pytest.mark.parametrize("window", [1, 4, 12])
def test_sequences_per_pass_and_checkpointing_leave_the_curve_unchanged(tiny_data, tmp_path: Path, window) -> None:
    config, packed = tiny_data
    curves = []
    for i, (per_pass, recompute) in enumerate([(12, False), (4, False), (2, False), (4, True)]):
        settings = {"sequences_per_pass": per_pass, "activation_checkpointing": recompute}
        terms = {"terms": [{"window": window, "weight": 0.5}]}
        run(tiny_config(config, train=settings, balance=terms), packed, tmp_path / str(i))
        curves.append(losses(tmp_path / str(i)))
    for curve in curves[1:]:
        # fp32 sums in another order; 12 steps do not amplify it beyond this.
        assert curve == pytest.approx(curves[0], rel=2e-5)


def test_prefix_differs_from_exact_under_accumulation_only(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data

    def curve(estimator: str, per_pass: int) -> list[float]:
        terms = {"terms": [{"window": 12, "weight": 1.0, "estimator": estimator}]}
        folder = tmp_path / f"{estimator}{per_pass}"
        run(tiny_config(config, train={"sequences_per_pass": per_pass}, balance=terms), packed, folder)
        return losses(folder)

    assert curve("prefix", 12) == curve("exact", 12)
    assert curve("prefix", 2) != pytest.approx(curve("exact", 2), rel=1e-6)


def test_a_batch_that_leaves_a_process_without_a_sequence_is_refused(tiny_data) -> None:
    config = tiny_config(tiny_data[0])
    with pytest.raises(ConfigError, match="hardware.processes"):
        split_batch(config.train, num_ranks=13, rank=0)


def test_a_scale_for_gpus_is_not_trained_where_there_is_none(tiny_data, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    config, packed = tiny_data
    with pytest.raises(ConfigError, match="hardware.gpu_gb.* torch finds none here"):
        run(tiny_config(config), packed, tmp_path, gpu_gb=80)


def test_a_training_of_one_process_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match="hardware.shard divides a training .* which is 1: raise one of them"):
        parse(HardwareConfig, {"shard": True}, "--hardware")


def poisoned(monkeypatch: pytest.MonkeyPatch, config: RunConfig, packed: Path, step: int) -> None:
    """Let the second layer give infinity for the Chinese sequences of one batch."""
    batches = TrainingBatches(config, packed)
    rows = zip(batches.tokens(step).tolist(), batches.domains(step), strict=True)
    bad = {tuple(row) for row, domain in rows if domain == "chinese"}
    forward = Objective.forward

    def broken(self: Objective, tokens: torch.Tensor, *rest):
        hit = torch.tensor([tuple(row) in bad for row in tokens.tolist()])

        def spoil(_module, _inputs, output):
            return torch.where(hit[:, None, None], torch.inf, output)

        handle = self.model.model.layers[1].register_forward_hook(spoil, prepend=True)
        try:
            return forward(self, tokens, *rest)
        finally:
            handle.remove()

    monkeypatch.setattr(Objective, "forward", broken)


def test_a_step_that_is_not_finite_stops_with_step_layer_and_domain_and_keeps_the_state_before(
    tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, packed = tiny_data
    config = tiny_config(data)
    whole = run(config, packed, tmp_path / "whole")
    for _ in range(2):  # the same command fails again, from the kept state
        with monkeypatch.context() as patch:
            poisoned(patch, config, packed, step=6)
            with pytest.raises(ConfigError, match=r"step 7: .*layer 1 is not finite on domain 'chinese';.*--skip-non"):
                run(config, packed, tmp_path / "bad")
        assert not (tmp_path / "bad" / "train.json").exists()
        assert max(saved_steps(tmp_path / "bad"), default=0) == 6
    # Were the cause gone, the kept state would continue as if nothing had happened.
    assert run(config, packed, tmp_path / "bad")["weights_sha256"] == whole["weights_sha256"]


def test_skip_nonfinite_leaves_the_step_out_and_counts_it(
    tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, packed = tiny_data
    terms = {"terms": [{"window": 12, "estimator": "previous"}], "bias": {"rate": 0.01}}
    config = tiny_config(data, balance=terms)
    whole = run(config, packed, tmp_path / "whole", skip_nonfinite=True)
    assert whole["skipped_steps"] == 0
    poisoned(monkeypatch, config, packed, step=6)
    skipped = run(config, packed, tmp_path / "bad", skip_nonfinite=True, log_every=1)
    assert skipped["skipped_steps"] == 1 and skipped["weights_sha256"] != whole["weights_sha256"]
    steps = [json.loads(line) for line in (tmp_path / "bad" / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert [line["skipped_steps"] for line in steps] == [0] * 6 + [1] * 5


def test_a_diverging_run_stops_with_the_remedy(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    with pytest.raises(ConfigError, match=r"step \d+: .* domain '.*train.learning_rate"):
        run(tiny_config(config, train={"learning_rate": 1e30, "warmup_steps": 0}), packed, tmp_path, log_every=1)
    assert not (tmp_path / "train.json").exists()


def test_estimators_and_bias_survive_an_interruption_and_move_the_run(tiny_data, tmp_path: Path) -> None:
    data, packed = tiny_data
    weights = set()
    for i, balance in enumerate(
        (
            {"terms": [{"window": 12, "weight": 0.5}]},
            {"terms": [{"window": 12, "weight": 0.5, "estimator": "previous"}]},
            {"terms": [{"window": 12, "weight": 0.5, "estimator": "ema", "half_life": 3.0}]},
            {"terms": [], "bias": {"window": 12, "rate": 0.05}},
            {"terms": [], "bias": {"window": 2, "rate": 0.05}},
        )
    ):
        config, folder = tiny_config(data, balance=balance), tmp_path / str(i)
        whole = run(config, packed, folder / "whole")
        with pytest.MonkeyPatch.context() as patch:
            stop_before(6, InterruptedError, patch)
            with pytest.raises(InterruptedError):
                run(config, packed, folder / "resumed")
        assert max(saved_steps(folder / "resumed"), default=0) == 4
        resumed = run(config, packed, folder / "resumed")
        assert resumed["weights_sha256"] == whole["weights_sha256"]
        for file in ("train.jsonl", "train.json", "counts.parquet", "model/model.safetensors"):
            assert (folder / "resumed" / file).read_bytes() == (folder / "whole" / file).read_bytes(), file
        if "bias" in balance:
            biases = [(folder / name / "model" / BIAS_FILE).read_bytes() for name in ("whole", "resumed")]
            assert biases[0] == biases[1]
            model = load_model(folder / "whole" / "model")
            assert all(router.bias is not None and router.bias.abs().max() >= 0.05 for router in routers(model))
        weights.add(whole["weights_sha256"])
    assert len(weights) == 5


def test_every_way_of_routing_and_balancing_trains_is_logged_resumed_and_kept(tiny_data, tmp_path: Path) -> None:
    data, packed = tiny_data
    terms = [{"window": 12, "weight": 0.05}]
    capacity = {"factor": 0.9, "window": "micro"}
    ways = {
        "plain": {},
        "sigmoid": {"model": {"gate": "sigmoid"}, "balance": {"terms": terms, "bias": {"rate": 0.01}}},
        "forced": {"balance": {"forced": True}},
        "similarity": {"balance": {"terms": [], "similarity_weight": 0.1}},
        "capacity": {
            "balance": {"terms": terms, "capacity": capacity},
            "train": {"activation_checkpointing": True},
        },
    }
    weights, last = {}, {}
    for name, changes in ways.items():
        config, folder = tiny_config(data, **changes), tmp_path / name
        weights[name] = run(config, packed, folder / "whole")["weights_sha256"]
        with pytest.MonkeyPatch.context() as patch:
            stop_before(6, InterruptedError, patch)
            with pytest.raises(InterruptedError):
                run(config, packed, folder / "resumed")
        run(config, packed, folder / "resumed")
        for file in ("train.jsonl", "model/model.safetensors", "model/config.json"):
            assert (folder / "resumed" / file).read_bytes() == (folder / "whole" / file).read_bytes(), (name, file)
        last[name] = json.loads((folder / "whole" / "train.jsonl").read_text().splitlines()[-1])
        CurveLine.model_validate(last[name])
        loaded = routers(load_model(folder / "whole" / "model"))
        assert {router.gate for router in loaded} == {"sigmoid" if name == "sigmoid" else "softmax"}
        assert {router.by_position for router in loaded} == {name == "forced"}
    assert len(set(weights.values())) == len(ways)
    assert {name for name, line in last.items() if "similarity" in line} == {"similarity"}
    assert {name for name, line in last.items() if "dropped" in line} == {"capacity"}
    assert last["forced"]["max_vio_micro"] == [0.0, 0.0]
    assert all(0 < share < 0.5 for share in last["capacity"]["dropped"])


def test_a_capacity_that_drops_nothing_leaves_the_curve_unchanged(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    roomy = {"terms": [{"window": 12, "weight": 0.05}], "capacity": {"factor": 8 / 2, "window": 1}}
    run(tiny_config(config), packed, tmp_path / "plain")
    run(tiny_config(config, balance=roomy), packed, tmp_path / "roomy")
    assert losses(tmp_path / "plain") == losses(tmp_path / "roomy")
    lines = [json.loads(line) for line in (tmp_path / "roomy" / "train.jsonl").read_text().splitlines()]
    assert [line["dropped"] for line in lines] == [[0.0, 0.0]] * len(lines)


def test_a_capacity_window_that_does_not_fit_the_passes_is_refused_before_a_step(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    with pytest.raises(ConfigError, match=r"balance.capacity.window \(12\).*train.sequences_per_pass"):
        run(tiny_config(config, balance={"capacity": {"window": "global"}}), packed, tmp_path)


def test_a_tracker_that_is_not_installed_is_named(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    with pytest.raises(ConfigError, match="hardware.tracker: 'clearml' is not installed"):
        run(tiny_config(config), packed, tmp_path, tracker="clearml")


def test_sigkill_twice_and_the_same_command_gives_the_same_weights_and_log(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 80})
    whole = run(config, packed, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = f"""
from pathlib import Path
from moe.config import RunConfig
from moe.scale import HardwareConfig
from moe.settings import read_json
from moe.train import train
folder = Path({str(tmp_path / "killed")!r})
train(read_json(RunConfig, Path({str(tmp_path / "config.json")!r})), run="tiny", data_folder=Path({str(packed)!r}),
      run_folder=folder, state_folder=folder / "state", hardware=HardwareConfig(log_every=4, checkpoint_every=4))
"""
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and max(saved_steps(tmp_path / "killed"), default=0) <= seen:
                time.sleep(0.01)
            seen = max(saved_steps(tmp_path / "killed"), default=0)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert 0 < seen < 80 and not (tmp_path / "killed" / "train.json").exists()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    resumed = json.loads((tmp_path / "killed" / "train.json").read_text())
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    counts = [(tmp_path / name / "counts.parquet").read_bytes() for name in ("killed", "whole")]
    assert counts[0] == counts[1]
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
