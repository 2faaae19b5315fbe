"""One of several gloo processes: divides a model, takes a step, looks at what it holds and tells the others.

python -m tests.distributed.divided   (with RANK, WORLD_SIZE and so on in the environment)
"""

import torch
import torch.distributed
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from moe.balance.windows import Layout
from moe.model.build import build_model
from moe.model.objective import Objective
from moe.shard import any_process, divide
from moe.step import Step, Stopwatch, make_optimizer
from tests import exactness


def main() -> None:
    """Assert that this process holds its part of weights, gradients and moments and no more, and hears the others."""
    accelerator = Accelerator()
    config = exactness.run_config([{"window": 12, "weight": 0.3}])
    with torch.device("meta"):
        objective = Objective(build_model(config.model, vocab_size=300, max_tokens=16, seed=0))
    values = exactness.fresh_objective(config, torch.float32) if accelerator.is_main_process else None
    total = sum(parameter.numel() for parameter in objective.parameters())
    divide(objective, values, accelerator.device)
    optimizer = make_optimizer(config.train, objective)
    sizes = tuple((2,) * accelerator.num_processes for _ in range(6 // accelerator.num_processes))
    step = Step(
        config,
        objective=objective,
        prepared=objective,
        optimizer=optimizer,
        accelerator=accelerator,
        layout=Layout(sizes, accelerator.process_index),
    )
    step.accumulate(0, exactness.batch(0, padded=False)[0], Stopwatch(accelerator.device, measure=False))
    gradients = [parameter.grad for parameter in objective.parameters()]
    optimizer.step()
    moments = [optimizer.state[parameter]["exp_avg"] for parameter in objective.parameters()]
    # A first dimension that does not divide is held in whole rows.
    most = 1.1 * total / accelerator.num_processes
    for tensors in (list(objective.parameters()), gradients, moments):
        held = sum(tensor.to_local().numel() for tensor in tensors if isinstance(tensor, DTensor))
        assert 0 < held < most and all(isinstance(tensor, DTensor) for tensor in tensors), (held, total)
    group = torch.distributed.new_group(backend="gloo")
    for told in range(accelerator.num_processes):
        assert any_process(accelerator.process_index == told, group)
    assert not any_process(False, group)
    del group  # before the process groups end, as in `moe/train.py`
    accelerator.end_training()


if __name__ == "__main__":
    main()
