"""What makes the steps of one process fast, and changes nothing else: compiled layers, memory that is kept.

Compiled code rounds in another order: runs are equal to the last bit only where `hardware.compile` is equal too.
"""

import ctypes
import gc
import platform
import sys
from typing import TYPE_CHECKING

import torch

from moe.model.products import by_numpy

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # its import takes seconds, and memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 1 << 30
"""Free memory that a process keeps, and largest block that it would keep."""

SHORT = 256
"""Longest sequence, in tokens, whose attention is two products: torch's kernel does its own, and never by numpy."""


def keep_memory() -> None:
    """Call it when all that lives to the end has been made. The collector no longer looks at it, and memory that a step
    frees stays in the process: else the next step gets it back page by page, zeroed."""
    gc.collect()
    gc.freeze()
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back_memory() -> None:
    """Call it behind the last step: what writes the records has an allocator of its own, beside the memory kept."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def compile_layers(model: "PreTrainedModel") -> bool:
    """Let torch compile every decoder layer at its first call; false, and nothing done, where no compiler works.

    Layers of one shape share their code, and it is kept for other runs.
    """
    # Helper processes would outlive a process that is killed, and one core compiles while the others train.
    torch._inductor.config.compile_threads = 1  # pyright: ignore[reportAttributeAccessIssue]
    try:
        torch.compile(torch.neg)(torch.zeros(1))
    except Exception as error:  # a missing compiler or header is whatever the back end makes of it
        reason = str(error).strip().split("\n")[0]
        print(f"the layers are not compiled, which costs time alone: {reason}", file=sys.stderr)
        return False
    if by_numpy() and model.config.max_position_embeddings <= SHORT:
        model.set_attn_implementation("eager")
    for module in (*model.model.layers, model.model.norm):
        module.compile(dynamic=False)
    return True
