"""Real processes over gloo: a window means the same on one, two and three ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import tiny_config

REPOSITORY = Path(__file__).parents[2]


def curve(config, packed: Path, folder: Path, processes: int, *, shard: bool = False) -> list[dict]:
    """Train in so many processes, perhaps divided over them; the lines of `train.jsonl`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    hardware = json.dumps({"processes": processes, "log_every": 4, "checkpoint_every": 6, "shard": shard})
    command = [sys.executable, "-m", "moe", "train", "--config", str(folder / "config.json"), "--data", str(packed)]
    result = subprocess.run(
        [*command, "--state", str(folder / "state"), "--hardware", hardware],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "train.json").read_text())["processes"] == processes
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_the_training_curve_does_not_depend_on_the_number_of_ranks(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    # Windows inside a rank, across ranks, and across ranks and passes, in one objective.
    terms = [{"window": window, "weight": 0.3} for window in (1, 4, 6, 12)]
    config = tiny_config(config, train={"sequences_per_pass": 2}, balance={"terms": terms})
    alone, *others = [curve(config, packed, tmp_path / str(n), n) for n in (1, 2, 3)]
    counts, *other_counts = [pq.read_table(tmp_path / str(n) / "counts.parquet").to_pandas() for n in (1, 2, 3)]
    for other in other_counts:
        assert other.drop(columns="counts").equals(counts.drop(columns="counts"))
        moved = np.abs(np.stack(other["counts"].tolist()).astype(int) - np.stack(counts["counts"].tolist()))
        # Near-ties alone fall otherwise.
        assert moved.sum() < 0.01 * np.stack(counts["counts"].tolist()).sum()
    for other in others:
        for a, b in zip(alone, other, strict=True):
            # fp32 sums in another order.
            assert b["lm_loss"] == pytest.approx(a["lm_loss"], rel=2e-5)
            for x, y in zip(a["balance"], b["balance"], strict=True):
                assert y == pytest.approx(x, rel=2e-4)
            assert b["max_vio_global"] == pytest.approx(a["max_vio_global"], abs=0.05)
            assert b["max_vio_micro"] == pytest.approx(a["max_vio_micro"], abs=0.05)
