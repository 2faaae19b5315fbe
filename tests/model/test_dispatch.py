"""Our router and dispatch change nothing: same parameters, same logits, same gradients as the stock model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, Qwen3MoeForCausalLM

from moe.balance.statistics import Draws
from moe.config import ModelConfig
from moe.model import dispatch
from moe.model.build import build_model, num_parameters, routers, use_our_parts
from moe.model.objective import Objective
from moe.model.router import record_routing
from moe.speed import compile_layers

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_experts": 8, "top_k": 3, "expert_size": 16}


def build(num_shared_experts: int = 0, normalize_top_k: bool = False) -> PreTrainedModel:
    config = ModelConfig(**SIZES, num_shared_experts=num_shared_experts, normalize_top_k=normalize_top_k)
    return build_model(config, vocab_size=300, max_tokens=64, seed=1)


def loss_and_gradients(model: PreTrainedModel, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_shared_experts", [0, 2])
@pytest.mark.parametrize("normalize_top_k", [False, True])
def test_logits_and_gradients_equal_the_stock_model(num_shared_experts: int, normalize_top_k: bool) -> None:
    ours = build(num_shared_experts, normalize_top_k).double()
    stock = type(ours)(ours.config).double()
    stock.load_state_dict(ours.state_dict())
    stock.set_experts_implementation("eager")
    assert not routers(stock)
    tokens = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    loss, gradients = loss_and_gradients(ours, tokens)
    stock_loss, stock_gradients = loss_and_gradients(stock, tokens)
    # The router's arithmetic is fp32 in both.
    assert torch.allclose(loss, stock_loss, rtol=1e-6)
    assert gradients.keys() == stock_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, stock_gradients[name], rtol=1e-4, atol=1e-7), name


def test_dispatch_equals_a_loop_over_tokens_and_choices() -> None:
    model = build()
    experts = model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(17, 32, generator=generator)
    gates = torch.rand(17, 3, generator=generator)
    selected = torch.randint(0, 7, (17, 3), generator=generator)  # expert 7 gets no token
    with torch.no_grad():
        found = experts(hidden, selected, gates)
        expected = torch.zeros_like(hidden)
        for t in range(17):
            for k in range(3):
                gate, up = (experts.gate_up_proj[selected[t, k]] @ hidden[t]).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                expected[t] += gates[t, k] * (experts.down_proj[selected[t, k]] @ inner)
    assert torch.allclose(found, expected, atol=1e-6)


def test_forced_balance_loads_every_expert_equally_and_recording_sees_every_layer() -> None:
    model = build()
    for router in routers(model):
        router.forced_balance = True
    with record_routing(model) as layers:
        model(input_ids=torch.randint(0, 300, (2, 16)))
    assert len(layers) == 2
    for layer in layers:
        assert torch.bincount(layer.selected_TK.flatten(), minlength=8).tolist() == [12] * 8
    model(input_ids=torch.randint(0, 300, (2, 16)))
    assert len(layers) == 2


@pytest.mark.parametrize("num_shared_experts", [0, 2])
def test_checkpoint_loads_without_this_package_and_gives_the_same_logits(tmp_path: Path, num_shared_experts) -> None:
    model = build(num_shared_experts)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    model.save_pretrained(tmp_path)
    script = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(40).view(2, 20)).logits, sys.argv[1] + "/logits.pt")
assert not any(name == "moe" or name.startswith("moe.") for name in sys.modules)
"""
    # An empty folder, so that the package cannot be found from the working directory either.
    subprocess.run([sys.executable, "-I", "-c", script, str(tmp_path)], check=True, cwd=tmp_path)
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5)


def test_equal_seeds_give_equal_weights_and_parameters_are_counted() -> None:
    a, b = build(), build()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    total, active = num_parameters(a)
    routed = 2 * 8 * 3 * 32 * 16
    assert total == sum(p.numel() for p in a.parameters())
    assert total - active == routed * 5 // 8


def test_use_our_parts_keeps_the_parameters_themselves() -> None:
    stock = Qwen3MoeForCausalLM(build().config)
    before = dict(stock.named_parameters())
    after = dict(use_our_parts(stock).named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_counting_and_routing_end_behind_the_last_router_and_give_the_statistics_of_the_forward_pass() -> None:
    objective = Objective(build())
    tokens = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(16) < torch.tensor([16, 3, 9, 1])[:, None]
    for mask_SN, draws in ((None, None), (mask, None), (mask, Draws(tokens % 7, 7))):
        expected = objective(tokens, mask_SN, draws).statistics
        ran: list[int] = []
        handles = [
            layer.mlp.experts.register_forward_hook(lambda *_, i=i, ran=ran: ran.append(i))
            for i, layer in enumerate(objective.model.model.layers)
        ]
        counted = objective.count(tokens, mask_SN, draws)
        assert torch.equal(counted[0], expected.counts_LSE) and torch.equal(counted[1], expected.drawn_LDE)
        assert ran == list(range(len(objective.model.model.layers) - 1))
        routed = objective.route(tokens, mask_SN)
        # Nothing asks for draws of a batch that is routed alone.
        assert all(torch.equal(a, b) for a, b in zip(routed[:-1], expected[:-1], strict=True))
        assert ran == 2 * list(range(len(objective.model.model.layers) - 1))
        for handle in handles:
            handle.remove()


def sums_and_gradient(objective: Objective, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Statistics of a padded batch, and the gradients of the loss and of all of them."""
    objective.zero_grad()
    mask = torch.arange(tokens.shape[1]) < torch.tensor([16, 3, 9, 1])[:, None]
    nats, statistics = objective(tokens, mask, Draws(tokens % 7, 7))
    weights_LSE = torch.randn(statistics.scores_LSE.shape, generator=torch.Generator().manual_seed(1))
    (nats + (statistics.scores_LSE * weights_LSE).sum() + statistics.squares_LS.sum()).backward()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    return [value.detach() for value in (*statistics, *gradients)]


@pytest.mark.parametrize("compiled", [False, True])
def test_sums_inside_the_layer_are_those_of_the_recorded_routing_also_where_activations_are_recomputed(
    compiled: bool,
) -> None:
    plain, recomputing = Objective(build()).train(), Objective(build()).train()
    recomputing.model.activation_checkpointing_enable({"use_reentrant": False})
    if compiled and not (compile_layers(plain.model) and compile_layers(recomputing.model)):
        pytest.skip("no working C++ compiler")
    tokens = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    found = sums_and_gradient(plain, tokens)
    for inside, outside in zip(found, sums_and_gradient(recomputing, tokens), strict=True):
        assert torch.allclose(inside, outside, rtol=1e-5, atol=1e-6 * float(outside.abs().max()))
    assert all(
        router.recorded is router.mask_SN is router.draws is router.num_sequences is None
        for router in routers(plain.model)
    )


def test_a_pass_that_fails_leaves_the_routers_ready_for_one_of_another_shape() -> None:
    objective = Objective(build())
    with pytest.raises(IndexError):
        objective(torch.full((4, 16), 300))
    objective.model(input_ids=torch.zeros(1, 5, dtype=torch.int64))
    assert all(router.recorded is None for router in routers(objective.model))


def test_bf16_autocast_keeps_the_router_in_fp32_and_the_loss_close() -> None:
    objective = Objective(build())
    tokens = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    exact = objective(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16), record_routing(objective.model) as layers:
        rounded = objective(tokens)
    assert all(layer.logits_TE.dtype == torch.float32 for layer in layers)
    assert rounded.statistics.scores_LSE.dtype == torch.float32
    # bf16 has 8 bits of mantissa, and the sum over tokens must keep more than that.
    assert rounded.nats.dtype == torch.float32
    assert torch.allclose(rounded.nats, exact.nats, rtol=2e-3)
    rounded.nats.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


class Products(TorchDispatchMode):
    """Notes the types that matrix products are computed in, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_product" in func.name() or "grouped_mm" in func.name():
            self.dtypes |= {value.dtype for value in args if torch.is_tensor(value) and value.is_floating_point()}
        return func(*args, **(kwargs or {}))


def experts_pass(product, autocast: torch.dtype | None) -> tuple[list[torch.Tensor], Products]:
    """Result and gradients of one layer's experts, all parameters and inputs being fp32."""
    experts = build().model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(2)
    # Of a usual size, so that no gradient is tiny beside rounding.
    for weights in experts.parameters():
        weights.data = torch.randn(weights.shape, generator=generator) / 4
    hidden = torch.randn(17, 32, generator=generator).requires_grad_()
    gates = torch.rand(17, 3, generator=generator).requires_grad_()
    selected = torch.randint(0, 7, (17, 3), generator=generator)  # expert 7 gets no token
    with Products() as products:
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            found = product(experts, hidden, selected, gates)
        found.float().square().sum().backward()
    inputs = [hidden, gates, *experts.parameters()]
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in inputs)
    return [found.detach(), *(value.grad for value in inputs if value.grad is not None)], products


def test_an_accelerators_experts_compute_in_the_dtype_of_autocast_and_parameters_get_fp32_gradients() -> None:
    exact, products = experts_pass(dispatch.grouped_experts, None)
    assert products.dtypes == {exact[0].dtype} == {torch.float32}
    rounded, products = experts_pass(dispatch.grouped_experts, torch.bfloat16)
    assert products.dtypes == {rounded[0].dtype} == {torch.bfloat16}
    for a, b in zip(exact, rounded, strict=True):
        # bf16 has 8 bits of mantissa, and rounding adds up over two products and back.
        assert 0 < (a - b).norm() < 0.02 * a.norm()


def test_an_accelerators_experts_are_those_of_the_cpu() -> None:
    found, expected = (
        experts_pass(product, None)[0] for product in (dispatch.grouped_experts, dispatch.sorted_experts)
    )
    for a, b in zip(found, expected, strict=True):
        # fp32 sums in another order.
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
