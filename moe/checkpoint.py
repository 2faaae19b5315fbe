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
STATE = "state"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]
) -> None:
    """Write weights, optimizer and what else is carried over after `step` steps, then drop all but the last `KEEP`
    checkpoints."""
    tensors = {f"{STATE}.{name}": value for name, value in state.items()}
    tensors |= {f"model.{name}": value.detach() for name, value in _parameters(model).items()}
    for name, parameter in _parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value)
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
            return int(path.stem.split("-")[0]), _restore(load_file(path), model, optimizer)
        print(f"warning: {path} is damaged; training continues from the checkpoint before it", file=sys.stderr)
    return 0, {}


def _restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = _parameters(model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = {key.split(".", 1)[0] for key in tensors} - {"model", STATE}
    state = {i: {key: tensors[f"{key}.{names[p]}"] for key in keys} for i, p in enumerate(ordered)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return {name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{STATE}.")}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("[0-9]*-*.safetensors"), reverse=True)
