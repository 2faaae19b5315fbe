"""What is lost without an expert, against a slow definition: the whole model again, one expert at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from moe.data.packing import read_packed
from moe.data.tokenizer import load_tokenizer
from moe.drop_expert import increases
from moe.evaluate import evaluate, router_cosine
from moe.model.build import build_model, routers
from moe.scale import EvaluationConfig
from tests.conftest import tiny_config

TOKENS_SN = torch.randint(0, 400, (5, 12), generator=torch.Generator().manual_seed(7))
MODELS = {
    "three layers": {"num_layers": 3},
    "normalised gates": {"normalize_top_k": True},
    "shared experts": {"num_shared_experts": 1},
    "sigmoid gate": {"gate": "sigmoid", "normalize_top_k": True},
    "forced balance": {"forced": True, "num_layers": 3},
    "all experts chosen": {"num_experts": 3, "top_k": 3, "normalize_top_k": True},
}


def build(tiny_data, **fields: object) -> PreTrainedModel:
    """A model whose router tells experts apart, as a trained one does."""
    forced = bool(fields.pop("forced", False))
    settings = tiny_config(tiny_data[0], model=fields).model
    model = build_model(settings, vocab_size=400, max_tokens=32, seed=3, forced=forced).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@torch.no_grad()
def nats(model: PreTrainedModel) -> Tensor:
    """Summed loss of each sequence."""
    logits = model(input_ids=TOKENS_SN).logits[:, :-1].double()
    return F.cross_entropy(logits.flatten(0, 1), TOKENS_SN[:, 1:].flatten(), reduction="none").view(5, -1).sum(dim=1)


def nats_without(model: PreTrainedModel, layer: int, expert: int) -> Tensor:
    """The same where the expert's router logit is masked in the choice."""
    router = routers(model)[layer]

    def choose(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = hidden.reshape(-1, hidden.shape[-1]) @ router.weight.T
        scores_TE = logits_TE.softmax(dim=-1) if router.gate == "softmax" else logits_TE.sigmoid()
        masked_TE = scores_TE if router.bias is None else scores_TE + router.bias
        if router.by_position:
            position_T1 = torch.arange(TOKENS_SN.shape[1]).repeat(len(TOKENS_SN))[:, None]
            masked_TE = -((torch.arange(len(router.weight)) - router.top_k * position_T1) % len(router.weight)).float()
        masked_TE = masked_TE.index_fill(1, torch.tensor([expert]), -torch.inf)
        selected_TK = masked_TE.argsort(dim=-1, descending=True)[:, : min(router.top_k, len(router.weight) - 1)]
        gates_TK = scores_TE.gather(1, selected_TK)
        if router.normalize_top_k:
            gates_TK = gates_TK / gates_TK.sum(dim=-1, keepdim=True)
        return logits_TE, gates_TK, selected_TK

    router.forward = choose  # type: ignore[method-assign]
    found = nats(model)
    del router.forward
    return found


@pytest.mark.parametrize("name", [*MODELS, "selection bias"])
def test_loss_without_an_expert_equals_that_of_the_whole_model_with_its_logit_masked(tiny_data, name: str) -> None:
    model = build(tiny_data, **MODELS.get(name, {}))
    if name == "selection bias":
        for router in routers(model):
            router.use_bias()
            router.bias += torch.linspace(-0.2, 0.2, len(router.weight))  # type: ignore[operator]
    found = increases(model, TOKENS_SN, batch_size=2)
    whole = nats(model)
    slow = [
        [nats_without(model, layer, expert) - whole for expert in range(model.config.num_experts)]
        for layer in range(model.config.num_hidden_layers)
    ]
    expected = torch.stack([torch.stack(of_layer) for of_layer in slow])
    assert expected.abs().max() > 0.1
    # fp32 losses of some 60 nats, added up in another order.
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_it_does_not_depend_on_the_batch_and_leaves_the_model_as_it_was(tiny_data) -> None:
    model = build(tiny_data, num_layers=3)
    before, structure = nats(model), str(model)
    one, all_at_once = (increases(model, TOKENS_SN, batch_size=size) for size in (1, 100))
    torch.testing.assert_close(one, all_at_once, atol=2e-4, rtol=1e-4)
    assert torch.equal(nats(model), before) and str(model) == structure


def test_an_expert_that_a_sequence_never_chooses_is_not_missed_by_it(tiny_data) -> None:
    model = build(tiny_data)
    for router in routers(model):
        router.use_bias()
        router.bias[5] = -10.0  # type: ignore[index]
    found = increases(model, TOKENS_SN, batch_size=3)
    assert found[:, 5].eq(0).all() and found.ne(0).any()


def test_the_record_holds_the_increase_per_token_of_each_domain_and_nothing_by_default(tiny_data, tmp_path: Path):
    config, packed = tiny_config(tiny_data[0]), tiny_data[1]
    run = tmp_path / "run"
    model = build(tiny_data)
    model.save_pretrained(run / "model")
    (run / "config.json").write_text(config.model_dump_json())
    load_tokenizer(packed / "tokenizer").save_pretrained(run / "model")
    records = []
    for sequences in (0, 4):
        settings = EvaluationConfig(drop_expert_sequences=sequences)
        evaluate(run_folder=run, data_folder=packed, settings=settings, out=tmp_path / "evaluation.json")
        records.append(json.loads((tmp_path / "evaluation.json").read_text()))
    dropped = records[1].pop("drop_expert")
    assert records[0] == records[1]
    assert records[0]["router_cosine"] == [router_cosine(router.weight.detach()) for router in routers(model)]
    assert dropped["sequences"] == {"english": 4, "chinese": 4}
    for d, name in enumerate(dropped["sequences"]):
        first = torch.from_numpy(read_packed(packed, name, "heldout")[:4].astype(np.int64))
        expected = increases(model, first, batch_size=4).sum(dim=-1) / (4 * 31)
        # The record is rounded.
        assert np.array(dropped["nats"])[..., d] == pytest.approx(expected.numpy(), abs=1e-5)
