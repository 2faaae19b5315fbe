"""Is the memory of a training predicted? The plan against the peak that the operating system has seen."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peak import peak_of
from benchmarks.workload import pack_words, training
from moe.config import DataConfig, RunConfig
from moe.memory import MB, peak_bytes
from moe.scale import HardwareConfig

TARGET = 0.15
STEPS = 3  # the first step makes the optimizer's state
MODEL = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_experts": 16, "top_k": 2, "expert_size": 128}
BATCH = {"batch_sequences": 32, "sequences_per_pass": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "cpu scale": {"model": {"hidden_size": 64, "num_layers": 2, "num_experts": 32, "expert_size": 64}, "train": BATCH},
    "cpu scale, compiled": {
        "model": {"hidden_size": 64, "num_layers": 2, "num_experts": 32, "expert_size": 64},
        "train": BATCH,
        "compile": True,
    },
    "activations, compiled": {"train": BATCH, "compile": True},
    "activations": {"train": BATCH},
    "recomputed, bf16": {"train": BATCH | {"activation_checkpointing": True, "precision": "bf16"}},
    "vocabulary": {"model": {"num_layers": 2}, "vocab_size": 32768, "train": {"batch_sequences": 8}},
    "optimizer": {"model": {"num_experts": 128}, "train": {"batch_sequences": 8}},
    "two processes": {"model": {"num_experts": 64}, "train": BATCH, "processes": 2},
}


def measure() -> dict[str, Any]:
    """Peak resident bytes of one process of each training, predicted and measured; of several the largest."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = pack_words(folder)
        shapes = [_measured(folder / shape.replace(" ", "-"), data, shape) for shape in SHAPES]
    return {"target": TARGET, "shapes": shapes, "largest_error": max(abs(shape["error"]) for shape in shapes)}


def text(record: dict[str, Any]) -> str:
    """One line per shape, then the largest error beside its target."""
    lines = ["memory of one process      predicted   measured   error"]
    for shape in record["shapes"]:
        sizes = (shape[key] / MB for key in ("predicted_bytes", "measured_bytes"))
        lines.append(
            f"  {shape['shape']:22}" + "".join(f"{size:8,.0f} MB" for size in sizes) + f"{shape['error']:+8.1%}"
        )
    return "\n".join([*lines, f"  largest error {record['largest_error']:.1%}, target {record['target']:.0%}"])


def _measured(folder: Path, data: DataConfig, shape: str) -> dict[str, Any]:
    settings = SHAPES[shape]
    config = RunConfig.model_validate(
        {
            "model": MODEL | settings.get("model", {}),
            # A larger vocabulary of a model is never read.
            "data": data.model_dump() | {"vocab_size": settings.get("vocab_size", 512)},
            "train": {"steps": STEPS, "warmup_steps": 1} | settings["train"],
        }
    )
    hardware = HardwareConfig(processes=settings.get("processes", 1), compile=settings.get("compile", False))
    predicted, measured = peak_bytes(config, hardware), peak_of(training(folder, config, hardware))
    return {
        "shape": shape,
        "processes": hardware.processes,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "error": predicted / measured - 1,
    }
