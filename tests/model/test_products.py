"""numpy in the place of torch's products: the same results up to rounding, and only where it can be faster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe import estimators, evaluate, latency, train
from moe.model import products
from moe.scale import EstimatorsConfig, EvaluationConfig, HardwareConfig, LatencyConfig
from tests.exactness import run_config

CPUINFO = "vendor_id\t: {}\nflags\t\t: fpu avx2 avx512f\n"


@pytest.fixture
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    library = products.replaced_products()
    monkeypatch.setattr(products, "_replaced", [library])
    yield
    library._destroy()


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def into(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(len(a), b.shape[1])
    products.multiply(a, b, out)
    return out


# Each takes matrices [5, 3], [3, 4] and [5, 4].
PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mm": lambda a, b, c: a @ b,
    "transposed": lambda a, b, c: b.T @ a.T,
    "of every other column": lambda a, b, c: a[:, ::2] @ b[::2],
    "without rows": lambda a, b, c: a[:0] @ b,
    "without a sum": lambda a, b, c: a[:, :0] @ b[:0],
    "into a given tensor": lambda a, b, c: torch.mm(a, b, out=c.clone()),
    "into a tensor that is too small": lambda a, b, c: torch.mm(a, b, out=c.new_empty(0)),
    "into a view": lambda a, b, c: torch.mm(a, b, out=c.new_zeros(4, 5).T),
    "bmm": lambda a, b, c: torch.bmm(a.expand(2, 5, 3), torch.stack([b, 2 * b])),
    "bmm into a given tensor": lambda a, b, c: torch.bmm(a[None], b[None], out=c[None].clone()),
    "linear": lambda a, b, c: F.linear(a.view(1, 5, 3), b.T),
    "linear with a bias": lambda a, b, c: F.linear(a, b.T, c[0]),
    "addmm": lambda a, b, c: torch.addmm(c, a, b),
    "addmm of a share": lambda a, b, c: torch.addmm(c, a, b, beta=0.5, alpha=-2),
    "addmm without its summand": lambda a, b, c: torch.addmm(c * torch.nan, a, b, beta=0),
    "addmm into a given tensor": lambda a, b, c: torch.addmm(c, a, b, out=c.new_empty(5, 4)),
    "addmm in place": lambda a, b, c: c.clone().addmm_(a, b, beta=0.5),
    "of an expert": lambda a, b, c: into(a, b),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_torch(by_numpy: None, name: str) -> None:
    operands = numbers(5, 3, seed=1), numbers(3, 4, seed=2), numbers(5, 4, seed=3)
    with patch.object(products, "_array", wraps=products._array) as array:
        found = PRODUCTS[name](*operands)
        assert array.called, "numpy was not asked"
        array.reset_mock()
        exact = PRODUCTS[name](*(operand.double() for operand in operands))
        assert not array.called
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_are_left_to_torch(by_numpy: None, dtype: torch.dtype) -> None:
    a, b = (9 * numbers(5, 5, seed=seed) for seed in (1, 2))
    a, b = a.to(dtype), b.to(dtype)
    with patch.object(products, "_array") as array:
        assert (a @ b).dtype == torch.addmm(a, a, b).dtype == into(a, b).dtype == dtype
    assert not array.called


def test_gradients_are_those_of_torch(by_numpy: None) -> None:
    found, exact = (
        torch.autograd.grad(((numbers(5, 3).to(dtype) @ weights) ** 2).sum(), weights)[0]
        for dtype in (torch.float32, torch.float64)
        for weights in [numbers(3, 4, seed=1).to(dtype).requires_grad_()]
    )
    assert torch.allclose(found.double(), exact, rtol=1e-5)


def test_compiled_code_is_served_too(by_numpy: None) -> None:
    a, b = numbers(64, 32), numbers(32, 48, seed=1)
    with patch.object(products, "_array", wraps=products._array) as array:
        found = torch.compile(lambda a, b: (a @ b).relu() * 2)(a, b)
    assert array.called
    assert torch.allclose(found, (a.double() @ b.double()).relu().float() * 2, rtol=1e-5, atol=1e-5)


class Asked(Exception):
    pass


HARDWARE = HardwareConfig(processes=2)
NOWHERE = dict.fromkeys(("run_folder", "data_folder", "state_folder"), Path("none"))
STAGES: dict[ModuleType, Callable[[], None]] = {
    train: lambda: train.train(run_config([]), run="r", hardware=HARDWARE, **NOWHERE),
    evaluate: lambda: evaluate.evaluate_all([(Path("none"), Path("none"), Path("none"))], EvaluationConfig()),
    estimators: lambda: estimators.measure(settings=EstimatorsConfig(), hardware=HARDWARE, out=Path("none"), **NOWHERE),
    latency: lambda: latency.measure(runs=[], settings=LatencyConfig(), hardware=HARDWARE, out=Path("none")),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_asks_for_the_fastest_products(stage: ModuleType) -> None:
    with patch.object(stage, "use_fastest_products", side_effect=Asked), pytest.raises(Asked):
        STAGES[stage]()


def test_a_divided_training_leaves_products_to_torch() -> None:
    hardware = HARDWARE.model_copy(update={"shard": True})
    with (
        patch.object(train, "use_fastest_products") as asked,
        patch.object(train, "TrainingBatches"),
        patch.object(train, "_objective", side_effect=Asked),
        pytest.raises(Asked),
    ):
        train.train(run_config([]), run="r", hardware=hardware, **NOWHERE)
    assert not asked.called


@pytest.mark.parametrize(
    ("vendor", "kernels", "faster"),
    [
        ("AuthenticAMD", "SkylakeX", True),
        ("AuthenticAMD", "Cooperlake", True),
        ("AuthenticAMD", "Haswell", False),
        ("GenuineIntel", "SkylakeX", False),
    ],
)
def test_numpy_is_asked_where_only_its_library_uses_the_whole_processor(
    vendor: str, kernels: str, faster: bool
) -> None:
    library = {"user_api": "blas", "internal_api": "openblas", "architecture": kernels}
    with (
        patch.object(Path, "read_text", lambda _: CPUINFO.format(vendor)),
        patch.object(products, "threadpool_info", lambda: [{"internal_api": "openmp"}, library]),
    ):
        assert products.numpy_is_faster() == faster


def test_torch_is_left_alone_where_nothing_tells_the_processor() -> None:
    with patch.object(Path, "read_text", side_effect=FileNotFoundError):
        assert not products.numpy_is_faster()
