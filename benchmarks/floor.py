"""How fast could a step be? The time of its matrix products alone, every one as large and as often as in training.

Forward and the two products of the backward pass, with balanced experts, results written into memory that is there.
"""

import time
from typing import NamedTuple

import torch

from moe.config import RunConfig


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
    expert_rows = tokens * model.top_k // model.num_experts
    layer = [
        Product(tokens, width, width, 4),  # q, k, v and output projections
        Product(length, width // heads, length, 1, sequences * heads),  # attention scores
        Product(length, length, width // heads, 1, sequences * heads),  # attention values
        Product(tokens, width, model.num_experts, 1),  # router
        Product(expert_rows, width, 2 * size, model.num_experts),
        Product(expert_rows, size, width, model.num_experts),
    ]
    head = Product(tokens, width, config.data.vocab_size, 1)
    return [*(item._replace(count=item.count * model.num_layers) for item in layer), head]


def num_flops(config: RunConfig) -> int:
    """Floating-point operations of the products of one step."""
    return sum(product.flops for product in products(config))


class Floor:
    """All products of a step, ready to be timed."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        self.work = []
        for product in products(config):
            rows, inner, columns, count, batch = product
            left, right, result = (batch, rows, inner), (batch, inner, columns), (batch, rows, columns)
            # Operands, result, and gradients of result, left and right; each product has its own, as in training.
            shapes = (left, right, result, result, left, right)
            self.work += [[torch.randn(shape, device=device, dtype=dtype) for shape in shapes] for _ in range(count)]

    def seconds(self) -> float:
        """Time of one step's products."""
        began = time.perf_counter()
        for tensors in self.work:
            a, b, c, grad_c, grad_a, grad_b = (t[0] for t in tensors) if len(tensors[0]) == 1 else tensors
            torch.matmul(a, b, out=c)
            torch.matmul(grad_c, b.mT, out=grad_a)
            torch.matmul(a.mT, grad_c, out=grad_b)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began
