"""Training state on disk: one safetensors file per checkpoint, whose name carries the hash of its content.

The state folder is private to training: `<step>-<sha256 prefix>.safetensors`, the last two kept, and the metrics so
far. A file that does not match its name is passed over with a warning, and the one before it is used.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moe.provenance import complete_file, sha256_of
from moe.shard import fill, like, whole

KEEP = 2
STATE = "state"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Tensor],
    *,
    writes: bool = True,
) -> None:
    """Write weights, optimizer and what else is carried over after `step` steps, then drop all but the last `KEEP`
    checkpoints. Every process of a divided training makes this call, and one of them `writes`."""
    tensors = {f"{STATE}.{name}": value for name, value in state.items()}
    for name, parameter in _parameters(model).items():
        values = {"model": parameter.detach(), **optimizer.state.get(parameter, {})}
        for key, value in values.items():
            joined = whole(torch.as_tensor(value))
            if writes:
                tensors[f"{key}.{name}"] = joined.cpu()
    if not writes:
        return
    with complete_file(folder / "new.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        final = folder / f"{step:08d}-{sha256_of(temporary)[:16]}.safetensors"
    (folder / "new.safetensors").replace(final)
    for old in _checkpoints(folder)[KEEP:]:
        old.unlink()


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Tensor]]:
    """Restore the newest sound checkpoint; its number of steps and what else was carried over, 0 and nothing where
    there is none."""
    for path in _checkpoints(folder):
        if sha256_of(path)[:16] == path.stem.split("-")[1]:
            with safe_open(path, "pt") as file:
                return int(path.stem.split("-")[0]), _restore(file, model, optimizer)
        print(f"warning: {path} is damaged; training continues from the checkpoint before it", file=sys.stderr)
    return 0, {}


def _restore(file: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensor by tensor, so that the processes of a divided training never hold all of them."""
    parameters = _parameters(model)
    for name, parameter in parameters.items():
        fill(parameter, file.get_tensor(f"model.{name}"))
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Sorted: every process has to divide the same moment at the same time.
    keys = sorted({key.split(".", 1)[0] for key in file.keys()} - {"model", STATE})  # noqa: SIM118

    def moments(parameter: nn.Parameter) -> dict[str, Tensor]:
        values = {key: file.get_tensor(f"{key}.{names[parameter]}") for key in keys}
        return {key: like(parameter, value) if value.ndim else value for key, value in values.items()}

    state = {i: moments(parameter) for i, parameter in enumerate(ordered)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    carried = [key for key in file.keys() if key.startswith(f"{STATE}.")]  # noqa: SIM118
    return {key.split(".", 1)[1]: file.get_tensor(key) for key in carried}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("[0-9]*-*.safetensors"), reverse=True)
