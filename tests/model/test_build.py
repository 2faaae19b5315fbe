"""A checkpoint is tensors: pickled weights are refused, and nothing in them runs."""

import contextlib
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.config import ModelConfig
from moe.model.build import build_model, load_model
from moe.settings import ConfigError

SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_experts": 4, "top_k": 2, "expert_size": 16}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
}


@pytest.mark.parametrize("way", WAYS)
def test_pickled_weights_are_refused_and_run_nothing(way: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(**SIZES), vocab_size=300, max_tokens=64, seed=1)
    model.config.save_pretrained(tmp_path)
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"
    WAYS[way]({**model.state_dict(), "other": Malicious(mark)}, path)
    with warnings.catch_warnings(), pytest.raises(ConfigError, match="not a sound checkpoint"):
        warnings.simplefilter("ignore")
        load_model(tmp_path)
    assert not mark.exists()
    # It would have run.
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert mark.exists()
