"""Numerics between versions: training curves of three small runs, kept in `losses.json`.

A change of the curves is explained in the commit that rewrites the file: `pytest tests/golden --update-golden`.
"""

import json
from pathlib import Path

import pytest

from moe.scale import HardwareConfig
from moe.train import train
from tests.conftest import tiny_config

FILE = Path(__file__).with_name("losses.json")
RUNS = {
    "exact windows over passes": {"balance": {"terms": [{"window": 12, "weight": 0.1}, {"window": 2, "weight": 0.01}]}},
    "prefix, uneven passes": {
        "balance": {"terms": [{"window": 12, "weight": 0.1, "estimator": "prefix"}]},
        "train": {"sequences_per_pass": 5},
    },
    "ema and bias, shared experts": {
        "balance": {
            "terms": [{"window": 12, "weight": 0.1, "estimator": "ema", "half_life": 2.0}],
            "bias": {"window": 4, "rate": 0.01},
        },
        "model": {"num_shared_experts": 1, "normalize_top_k": True},
    },
}
KEYS = ("lm_loss", "grad_norm", "z_loss", "balance")


def curve(tiny_data, folder: Path, sections: dict) -> list[dict]:
    data, packed = tiny_data
    hardware = HardwareConfig(log_every=3)
    config = tiny_config(data, **sections)
    train(config, run="golden", data_folder=packed, run_folder=folder, state_folder=folder / "s", hardware=hardware)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in KEYS} for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_the_golden_one(name: str, tiny_data, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = curve(tiny_data, tmp_path, RUNS[name])
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if request.config.getoption("--update-golden"):
        FILE.write_text(json.dumps(golden | {name: found}, indent=1) + "\n")
    golden = json.loads(FILE.read_text())
    for before, now in zip(golden[name], found, strict=True):
        for key in KEYS:
            # Another processor sums in another order; twelve steps amplify fp32 rounding to less than this.
            assert flat(now[key]) == pytest.approx(flat(before[key]), rel=2e-4), key


def flat(value) -> list[float]:
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]
