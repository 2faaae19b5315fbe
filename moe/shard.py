"""One training divided over all processes (FSDP2): each keeps its share of weights, gradients and moments.

A layer's weights are put together when it is used and its gradient is averaged and divided at once. Weights, their sums
and the optimizer stay in fp32, so a divided training follows the one of a single process.
"""

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from moe.model.objective import Objective


def divide(objective: Objective, values: Objective | None, device: torch.device) -> None:
    """Divide an objective without memory (device `meta`) in place over all processes, each on its `device`.

    `values`: the same objective with its weights on the first process, None on the others, which never hold all of it.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in objective.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "count")
    objective.to_empty(device=device)
    # Its frequencies are computed and not stored: no memory was filled with them.
    rotary = objective.model.model.rotary_emb
    for name, frequencies in type(rotary)(objective.model.config).named_buffers():
        rotary.get_buffer(name).copy_(frequencies)
    weights = {} if values is None else dict(values.named_parameters())
    for name, parameter in objective.named_parameters():
        fill(parameter, weights.get(name, torch.empty(parameter.shape, dtype=parameter.dtype)))


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Copy `values` into a parameter; into a divided one those of the first process."""
    parameter.copy_(like(parameter, values.detach()))


def like(parameter: Tensor, values: Tensor) -> Tensor:
    """`values` on the parameter's device, divided as it is; of a divided one the first process's values count."""
    values = values.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(values, parameter.device_mesh, parameter.placements)
    return values


def whole(values: Tensor) -> Tensor:
    """Divided values put together, which every process has to call; others as they are."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def joined_weights(model: nn.Module, *, keeps: bool) -> dict[str, Tensor]:
    """All weights of a divided model on the CPU, by name, for the process that `keeps` them; every one has to call."""
    joined = {}
    for name, parameter in model.named_parameters():
        values = whole(parameter.detach())
        if keeps:
            joined[name] = values.cpu()
    return joined


def any_process(flag: bool, group: torch.distributed.ProcessGroup) -> bool:
    """Whether it is true in some process of a gloo group; each has to ask. No device takes part, or is waited for."""
    found = torch.tensor(flag, dtype=torch.uint8, device="cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group)
    return bool(found)
