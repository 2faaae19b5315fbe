"""A record of the training benchmark, made by its own arithmetic from seconds that are easy to reckon with."""

from typing import Any

from benchmarks.training import MACHINE, _ratio, _step_part

TOKENS = 4096
ROUNDS = {
    "ours": [[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]],
    "Trainer, grouped_mm": [[0.15, 0.15], [0.15, 0.15], [0.2, 0.2]],
}
FLOOR = [[0.05, 0.05], [0.05, 0.05], [0.1 / 1.5, 0.1 / 1.5]]


def _contender(name: str) -> dict[str, Any]:
    extra = {"peak_bytes": 700_000_000, "first_seconds": 12.0, "loss": 7.0, "gradient_norm": 1.0}
    return _step_part(ROUNDS[name], TOKENS) | {"ratio": _ratio(ROUNDS[name], ROUNDS["ours"])} | extra


RECORD: dict[str, Any] = {
    "products": "numpy",
    "shapes": {
        "cpu": {
            "description": "2 layers of 64",
            "config": {"model": {"num_layers": 2, "hidden_size": 64, "num_experts": 32}},
            "contenders": {name: _contender(name) for name in ROUNDS},
            "floors": {
                name: _step_part(FLOOR, TOKENS) | {"ours_over": _ratio(ROUNDS["ours"], FLOOR), "share": 0.5}
                for name in ("floor", "floor, cold operands")
            },
            "failed": {},
        }
    },
    "machine": {
        "ways": {way: {"tokens_per_second": 1e4} for way in MACHINE},
        "ratio": {"median": 1.4, "lowest": 1.3, "highest": 1.6},
    },
}
