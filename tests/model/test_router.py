"""Gates, forced balance and capacity: the layer against loops, in every way that tokens come, and through a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from moe.balance.capacity import Capacity
from moe.balance.statistics import Gate
from moe.config import ModelConfig
from moe.model.build import build_model, load_model, routers, save_model, stock_model
from moe.model.router import Router, follow_positions, record_routing, top_experts

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_experts": 6, "top_k": 2, "expert_size": 16}


def build(*, forced: bool = False, **settings: Any) -> PreTrainedModel:
    model = build_model(ModelConfig(**SIZES | settings), vocab_size=300, max_tokens=64, seed=1, forced=forced)
    with torch.no_grad():
        for router in routers(model):
            router.weight.mul_(20)  # so that experts differ
    return model.eval()


def text(num_sequences: int, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 300, (num_sequences, length), generator=torch.Generator().manual_seed(0))


def limited(model: PreTrainedModel, factor: float, window: int) -> PreTrainedModel:
    follow_positions(model)
    for router in routers(model):
        router.capacity = Capacity(factor, window)
    return model.train()


@pytest.mark.parametrize("normalize_top_k", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_sigmoid_gates_and_their_gradient_equal_a_loop_over_tokens(normalize_top_k: bool, biased: bool) -> None:
    router = routers(build(gate="sigmoid", normalize_top_k=normalize_top_k).double())[0]
    if biased:
        router.use_bias()
        assert router.bias is not None
        router.bias += torch.linspace(-0.5, 0.5, 6)
    hidden = torch.randn(15, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits, gates, selected = router(hidden)
    expected, chosen = [], []
    for vector in hidden:
        scores = 1 / (1 + torch.exp(-(router.weight @ vector)))
        preferred = scores if router.bias is None else scores + router.bias
        best = preferred.argsort(descending=True)[:2]
        chosen.append(best.tolist())
        total = sum(scores[i] for i in best) if normalize_top_k else 1.0
        expected.append(torch.stack([scores[i] / total for i in best]))
    assert selected.tolist() == chosen
    assert torch.allclose(gates, torch.stack(expected), rtol=1e-12)
    assert torch.allclose(logits, hidden @ router.weight.T)
    weights = torch.randn(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((g * weights).sum(), router.weight)[0] for g in (gates, torch.stack(expected))]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_forced_balance_gives_a_position_its_experts_in_any_batch_behind_a_cache_and_behind_padding() -> None:
    model, tokens = build(forced=True), text(3)
    by_position = torch.arange(24).view(12, 2) % 6

    @torch.no_grad()
    def selected(**inputs: Any) -> tuple[list[torch.Tensor], Any]:
        with record_routing(model) as layers:
            outputs = model(**inputs)
        assert len(layers) == 2 and torch.equal(layers[0].selected_TK, layers[1].selected_TK)
        return list(layers[0].selected_TK.unflatten(0, inputs["input_ids"].shape)), outputs

    found, outputs = selected(input_ids=tokens)
    assert all(torch.equal(rows, by_position) for rows in found)
    # Held-out loss and lm-eval leave out the last token.
    found, short = selected(input_ids=tokens[:, :-1])
    assert all(torch.equal(rows, by_position[:-1]) for rows in found)
    assert torch.allclose(short.logits, outputs.logits[:, :-1], atol=1e-5)
    # One token after the other, as text is generated.
    cache = selected(input_ids=tokens[:, :5], use_cache=True)[1].past_key_values
    for n in range(5, 12):
        found, step = selected(input_ids=tokens[:, n : n + 1], past_key_values=cache, use_cache=True)
        assert all(torch.equal(rows, by_position[n : n + 1]) for rows in found)
        assert torch.allclose(step.logits[:, 0], outputs.logits[:, n], atol=1e-5)
    # Padding on the left, as a batch of prompts has it.
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.int64), tokens], dim=1)
    mask = torch.tensor([0] * 4 + [1] * 12).expand(3, 16)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found, late = selected(input_ids=padded, attention_mask=mask, position_ids=positions)
    assert all(torch.equal(rows[4:], by_position) for rows in found)
    assert torch.allclose(late.logits[:, 4:], outputs.logits, atol=1e-5)


def test_forced_balance_loads_the_experts_of_every_sequence_equally() -> None:
    model = build(forced=True)
    with record_routing(model) as layers:
        model(input_ids=text(2))
    for layer in layers:
        for rows in layer.selected_TK.unflatten(0, (2, 12)):
            assert torch.bincount(rows.flatten(), minlength=6).tolist() == [4] * 6


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("normalize_top_k", [False, True])
def test_an_experts_room_is_a_loop_over_the_tokens_of_each_window(window: int, normalize_top_k: bool) -> None:
    model = limited(build(normalize_top_k=normalize_top_k), 0.8, window)
    block, seen = model.model.layers[1].mlp, {}
    block.register_forward_hook(lambda _module, inputs, output: seen.update(hidden=inputs[0], output=output))
    with torch.no_grad():
        model(input_ids=text(4))
        hidden = seen["hidden"].flatten(0, 1)
        expected, dropped = torch.zeros_like(hidden), 0
        for start in range(0, 48, 12 * window):
            taken = [0] * 6
            for t in range(start, start + 12 * window):
                scores = (block.gate.weight @ hidden[t]).softmax(dim=-1)
                best = scores.argsort(descending=True)[:2].tolist()
                total = sum(scores[i] for i in best) if normalize_top_k else 1.0
                for expert in best:
                    if taken[expert] >= 0.8 * 2 * 12 * window / 6:
                        dropped += 1
                        continue
                    taken[expert] += 1
                    gate, up = (block.experts.gate_up_proj[expert] @ hidden[t]).chunk(2)
                    inner = torch.nn.functional.silu(gate) * up
                    expected[t] += scores[expert] / total * (block.experts.down_proj[expert] @ inner)
    assert dropped > 0
    assert torch.allclose(seen["output"].flatten(0, 1), expected, atol=1e-6)


def test_capacity_leaves_evaluation_dropless_and_drops_nothing_at_experts_over_k() -> None:
    def logits(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=text(4)).logits

    expected = logits(build())
    tight = limited(build(), 0.5, 2)
    assert not torch.allclose(logits(tight), expected)
    assert torch.equal(logits(tight.eval()), expected)
    assert torch.equal(logits(limited(build(), 6 / 2, 2)), expected)


def test_a_pass_smaller_than_a_window_is_one_window() -> None:
    # As where a batch is gone through sequence by sequence to find what is not finite.
    with torch.no_grad():
        found, expected = (limited(build(), 0.8, window)(input_ids=text(1)).logits for window in (4, 1))
    assert torch.equal(found, expected)


def test_bf16_autocast_leaves_gates_and_room_to_fp32() -> None:
    model = limited(build(gate="sigmoid"), 0.8, 2)
    router, hidden = routers(model)[0], torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    model(input_ids=text(4))  # tells the length of the sequences
    logits, gates, selected = router(hidden)
    assert (gates == 0).any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = router(hidden)
        model(input_ids=text(4)).logits.float().sum().backward()
    for found, expected in zip(outputs, (logits, gates, selected), strict=True):
        assert torch.equal(found, expected)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropped_selections_have_no_gradient_at_their_expert() -> None:
    model = limited(build(top_k=1), 0.1, 1)  # one place of each expert in a sequence
    experts = model.model.layers[1].mlp.experts
    with record_routing(model) as layers:
        model(input_ids=text(1)).logits.sum().backward()
    chosen = set(layers[1].selected_TK.flatten().tolist())
    assert experts.down_proj.grad is not None
    assert {i for i in range(6) if experts.down_proj.grad[i].abs().sum() > 0} == chosen
    rows = routers(model)[1].weight.grad
    assert rows is not None and rows.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "forced"),
    [({"gate": "sigmoid"}, False), ({}, True), ({"gate": "sigmoid", "normalize_top_k": True}, True)],
)
def test_a_checkpoint_keeps_gate_and_forced_balance(settings: dict, forced: bool, tmp_path: Path) -> None:
    model = build(forced=forced, **settings)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=text(3)).logits
        assert torch.equal(loaded(input_ids=text(3)).logits, expected)
        # Stock classes read it too, and route as they know it.
        stock = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not torch.allclose(stock(input_ids=text(3)).logits, expected, atol=1e-3)
    save_model(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_neutral_checkpoint_says_nothing_of_routing(tmp_path: Path) -> None:
    save_model(build(), tmp_path / "ours")
    stock_model(ModelConfig(**SIZES), vocab_size=300, max_tokens=64, seed=1).save_pretrained(tmp_path / "stock")
    ours, stock = (tmp_path / name / "config.json" for name in ("ours", "stock"))
    assert ours.read_text() == stock.read_text()


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(5, 1), (16, 2), (33, 4), (72, 8)])
def test_compiled_code_chooses_the_experts_that_topk_does(gate: Gate, num_experts: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    router = Router(torch.nn.Parameter(torch.randn(num_experts, 8, generator=generator)), top_k, True, gate)
    hidden = torch.randn(300, 8, generator=generator)
    for biased in (False, True):
        if biased:
            router.use_bias()
            assert router.bias is not None
            router.bias += torch.randn(num_experts, generator=generator) / 10
        expected, found = router(hidden), torch.compile(router, dynamic=False)(hidden)
        assert torch.equal(found[2], expected[2])
        assert torch.allclose(found[1], expected[1], atol=1e-6)


def test_compiled_code_takes_the_first_of_equal_experts_and_some_where_scores_are_not_numbers() -> None:
    scores = torch.full((3, 20), 0.05)
    scores[1, 7] = scores[1, 18] = 0.1
    scores[2] = torch.nan
    first, two, broken = torch.compile(top_experts)(scores, 2).tolist()
    assert first == [0, 1]
    assert two == [7, 18]
    assert all(0 <= expert < 20 for expert in broken)
