"""How fast could a step be? The time of its matrix products alone, every one as large and as often as in training.

Forward and the two products of the backward pass, with balanced experts and the half of attention that causality
leaves, results written into memory that is there, by whichever library multiplies in our step. `warm` repeats each kind
of product on the same operands, which stay in the cache where they fit: no step is faster, and it is what the target is
judged by. `cold` gives every product operands of its own, as training does.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from moe.config import RunConfig
from moe.model.products import use_fastest_products


class Product(NamedTuple):
    """`count` products of [batch, rows, inner] and [batch, inner, columns]."""

    rows: int
    inner: int
    columns: int
    count: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Floating-point operations of all of them, backward passes included."""
        return 3 * 2 * self.count * self.batch * self.rows * self.inner * self.columns


def products(config: RunConfig) -> list[Product]:
    """The forward products of one optimizer step of a model without shared experts."""
    model, sequences, length = config.model, config.train.batch_sequences, config.data.sequence_length
    tokens, width, size, heads = sequences * length, model.hidden_size, model.expert_size, model.num_heads
    rows = tokens * model.top_k // model.num_experts
    # On a GPU the launches of small products would take longer than the products.
    count, batch = (1, model.num_experts) if torch.cuda.is_available() else (model.num_experts, 1)
    layer = [
        Product(tokens, width, width, 4),  # q, k, v and output projections
        Product(length // 2, width // heads, length, 1, sequences * heads),  # attention scores
        Product(length // 2, length, width // heads, 1, sequences * heads),  # attention values
        Product(tokens, width, model.num_experts, 1),  # router
        Product(rows, width, 2 * size, count, batch),
        Product(rows, size, width, count, batch),
    ]
    head = Product(tokens, width, config.data.vocab_size, 1)
    return [*(item._replace(count=item.count * model.num_layers) for item in layer), head]


def num_flops(config: RunConfig) -> int:
    """Floating-point operations of the products of one step."""
    return sum(product.flops for product in products(config))


def floor(config: RunConfig, *, warm: bool) -> Callable[[], float]:
    """What does all products of a step and gives their seconds."""
    torch.manual_seed(0)
    use_fastest_products()
    work: list[list[Tensor]] = []
    for product in products(config):
        sets = [_operands(product, config.train.precision) for _ in range(1 if warm else product.count)]
        work += sets * (product.count // len(sets))

    def seconds() -> float:
        began = time.perf_counter()
        for a, b, c, grad_a, grad_b, grad_c in work:
            torch.matmul(a, b, out=c)
            torch.matmul(grad_c, b.mT, out=grad_a)
            torch.matmul(a.mT, grad_c, out=grad_b)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return seconds


def _operands(product: Product, precision: str) -> list[Tensor]:
    """Left, right, result, and their gradients; matrices where the batch is one, which need no batched kernel."""
    rows, inner, columns, _, batch = product
    shapes = [(batch, *shape) if batch > 1 else shape for shape in ((rows, inner), (inner, columns), (rows, columns))]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [torch.randn(shape, device=device, dtype=dtype) for shape in shapes * 2]
