"""Who multiplies fp32 matrices on the CPU? torch's library, or numpy's on processors where torch's uses half of them.

torch's wheels hold MKL, which uses AVX-512 on Intel's processors alone; on AMD's, numpy's OpenBLAS takes half the time
(docs/lab-notes.md). Results are equal up to rounding. OPENBLAS_CORETYPE=Haswell in the environment leaves all to torch.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

AVX512 = {"SkylakeX", "Cooperlake", "SapphireRapids"}
"""OpenBLAS's names of its kernels for AVX-512."""

_replaced: list[torch.library.Library] = []


def use_fastest_products() -> None:
    """Let numpy do the fp32 products of this process, those inside torch too, if that is faster.

    Do not call it where weights are divided: their memory comes and goes, and numpy holds that of tensors it has seen.
    """
    if numpy_is_faster() and not _replaced:
        # On one thread: torch's threads stay awake between two operators, and numpy's would wait for their cores.
        threadpool_limits(1, user_api="blas")
        _replaced.append(replaced_products())


def by_numpy() -> bool:
    """Whether numpy does the fp32 products of this process."""
    return bool(_replaced)


def numpy_is_faster() -> bool:
    """Whether numpy's library uses AVX-512 on a processor where torch's does not."""
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return not intel and any(library.get("architecture") in AVX512 for library in threadpool_info())


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a · b into `out`, for matrices on the CPU."""
    if _replaced and out.dtype is torch.float32:
        np.matmul(_array(a), _array(b), out=_array(out))
    else:
        torch.mm(a, b, out=out)


def replaced_products() -> torch.library.Library:
    """torch's products with numpy in their place, as long as the result is kept; other types go to torch as before."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):
        for name, product in _PRODUCTS.items():
            _replace(library, name, product)
    return library


def _replace(library: torch.library.Library, name: str, product: Callable[..., Tensor]) -> None:
    before = torch.library.get_kernel(f"aten::{name}", "CPU")

    def call(keys: Any, *operands: Tensor, **settings: Any) -> Tensor:
        if all(operand.dtype is torch.float32 for operand in operands):
            return product(*operands, **settings)
        return before.call_boxed(keys, *operands, **settings)

    library.impl(name, call, "CPU", with_keyset=True, allow_override=True)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return _product_into(a, b, out=a.new_empty(*a.shape[:-1], b.shape[-1]))


def _product_into(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    out.resize_(*a.shape[:-1], b.shape[-1])
    np.matmul(_array(a), _array(b), out=_array(out))
    return out


def _sum(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _sum_into(c, a, b, beta=beta, alpha=alpha, out=a.new_empty(len(a), b.shape[1]))


def _sum_in_place(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _sum_into(c, a, b, beta=beta, alpha=alpha, out=c)


def _sum_into(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor) -> Tensor:
    product = _product(a, b)
    # beta 0 leaves c out, also where it is not a number.
    return out.copy_(product * alpha if beta == 0 else torch.add(c if beta == 1 else c * beta, product, alpha=alpha))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "mm": _product,
    "mm.out": _product_into,
    "bmm": _product,
    "bmm.out": _product_into,
    "addmm": _sum,
    "addmm.out": _sum_into,
    "addmm_": _sum_in_place,
}
