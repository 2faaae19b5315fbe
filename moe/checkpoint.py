"""Training state on disk: one safetensors file per checkpoint, whose name carries the hash of its content.

The state folder is private to training: `<step>-<sha256 prefix>.safetensors`, the last two kept, and the metrics so
far. A file that does not match its name is passed over with a warning, and the one before it is used.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe.provenance import complete_file, sha256_of

KEEP = 2


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state after `step` steps, then drop all but the last `KEEP` checkpoints."""
    tensors = {f"model.{name}": value.detach() for name, value in _parameters(model).items()}
    for name, parameter in _parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value)
    with complete_file(folder / "new.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        final = folder / f"{step:08d}-{sha256_of(temporary)[:16]}.safetensors"
    (folder / "new.safetensors").replace(final)
    for old in _checkpoints(folder)[KEEP:]:
        old.unlink()


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest sound checkpoint and return its number of steps; 0 where there is none."""
    for path in _checkpoints(folder):
        if sha256_of(path)[:16] == path.stem.split("-")[1]:
            _restore(load_file(path), model, optimizer)
            return int(path.stem.split("-")[0])
        print(f"warning: {path} is damaged; training continues from the checkpoint before it", file=sys.stderr)
    return 0


def _restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = _parameters(model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = {key.split(".", 1)[0] for key in tensors} - {"model"}
    state = {i: {key: tensors[f"{key}.{names[p]}"] for key in keys} for i, p in enumerate(ordered)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("[0-9]*-*.safetensors"), reverse=True)
