"""The recorded counts are what the model chose, sequence by sequence, and survive an interruption."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from moe.checkpoint import load_checkpoint
from moe.config import RunConfig
from moe.counts import SequenceCounts
from moe.data.order import TrainingBatches
from moe.model.build import build_model
from moe.model.objective import Objective
from moe.model.router import record_routing
from moe.settings import digest
from moe.step import make_optimizer
from tests.conftest import tiny_config
from tests.stage import stop_before
from tests.test_train import run


def model_before(config: RunConfig, step: int, packed: Path, folder: Path) -> Objective:
    """The model that meets the batch of a step (from 0), from the checkpoint of a training that ends there."""
    with pytest.MonkeyPatch.context() as patch:
        stop_before(step, InterruptedError, patch)
        with pytest.raises(InterruptedError):
            run(config, packed, folder, checkpoint_every=step)
    model = build_model(config.model, vocab_size=config.data.vocab_size, max_tokens=config.data.sequence_length, seed=0)
    objective = Objective(model)
    assert load_checkpoint(folder / "state", objective, make_optimizer(config.train, objective))[0] == step
    return objective


def test_counts_of_every_step_and_sequence_equal_a_loop_over_its_tokens(tiny_data, tmp_path: Path) -> None:
    data, packed = tiny_data
    # Passes of 5, 5 and 2 sequences, and micro-batches that they cut.
    config = tiny_config(data, train={"steps": 8, "sequences_per_pass": 5, "micro_sequences": 3})
    run(config, packed, tmp_path / "whole", checkpoint_every=5)
    frame = pq.read_table(tmp_path / "whole" / "counts.parquet").to_pandas()
    assert list(zip(frame["step"], frame["layer"], frame["position"], strict=True)) == [
        (step, layer, position) for step in (5, 8) for layer in range(2) for position in range(12)
    ]
    assert (frame["micro_batch"] == frame["position"] // 3).all()
    batches = TrainingBatches(config, packed)
    for step in (5, 8):
        assert frame.loc[frame["step"] == step, "domain"].tolist() == 2 * batches.domains(step - 1)
        objective = model_before(config, step - 1, packed, tmp_path / str(step))
        expected = np.zeros((2, 12, 8), dtype=int)
        with torch.no_grad(), record_routing(objective.model) as layers:
            objective.model(input_ids=torch.from_numpy(batches.tokens(step - 1)))
        for layer, routing in enumerate(layers):
            for token, chosen in enumerate(routing.selected_TK.tolist()):
                for expert in chosen:
                    expected[layer, token // 32, expert] += 1
        found = np.stack(frame.loc[frame["step"] == step, "counts"].tolist()).reshape(expected.shape)
        # A near-tie may fall either way when the hidden states are computed in batches of another size.
        assert np.abs(found - expected).sum() <= 4
        assert (found.sum(axis=-1) == 32 * 2).all()


def test_the_file_says_what_made_it(tiny_data, tmp_path: Path) -> None:
    config = tiny_config(tiny_data[0])
    run(config, tiny_data[1], tmp_path)
    stamp = json.loads(pq.read_schema(tmp_path / "counts.parquet").metadata[b"moe"])
    assert (stamp["schema"], stamp["run"], stamp["config_hash"]) == ("moe-counts/1", "tiny", digest(config))
    assert {"code", "versions", "device"} <= set(stamp)


def test_what_lies_beyond_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    counts = SequenceCounts(tmp_path, 0)
    for step in (2, 4, 6):
        counts.add(step, torch.ones(1, 1, 1))
    SequenceCounts(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts-00000002.npy", "counts-00000004.npy"]
