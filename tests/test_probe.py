"""The probe's sums against a slow and obvious count, and its totals."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from moe.config import RunConfig
from moe.data.packing import read_packed
from moe.latency import measure
from moe.model.build import build_model, load_model
from moe.model.router import record_routing
from moe.probe import heldout_pass, write_routing
from moe.scale import HardwareConfig, LatencyConfig
from moe.train import train
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, Path]:
    """A trained run: config, run folder, data folder."""
    data, packed = tiny_data
    config = tiny_config(data)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(config.model_dump_json())
    state = folder.parent / "state"
    train(config, run="tiny", data_folder=packed, run_folder=folder, state_folder=state, hardware=HardwareConfig())
    return config, folder, packed


def write(config: RunConfig, folder: Path, packed: Path, out: Path) -> None:
    """The routing of the trained run."""
    sequences = {name: read_packed(packed, name, "heldout") for name in ("english", "chinese")}
    model = load_model(folder / "model")
    passes = {name: heldout_pass(model, found, batch_size=7) for name, found in sequences.items()}
    tokens = {name: found.size for name, found in sequences.items()}
    write_routing(passes, tokens, run=folder.name, config=config, device="cpu", out=out)


def test_counts_and_scores_equal_a_loop_over_tokens(trained, tmp_path: Path) -> None:
    config, folder, packed = trained
    write(config, folder, packed, tmp_path / "routing.parquet")
    frame = pq.read_table(tmp_path / "routing.parquet").to_pandas()
    model = load_model(folder / "model")
    sequences = torch.from_numpy(read_packed(packed, "english", "heldout").astype(np.int64))
    tokens, scores, chosen = np.zeros(8), np.zeros(8), np.zeros(8)
    with torch.no_grad():
        hidden = {}
        handle = model.model.layers[1].mlp.register_forward_pre_hook(lambda _m, args: hidden.update(x=args[0]))
        model(input_ids=sequences)
        handle.remove()
        for vector in hidden["x"].flatten(0, 1):
            probabilities = (model.model.layers[1].mlp.gate.weight @ vector).softmax(dim=-1)
            best = probabilities.argsort(descending=True)[:2]
            scores += probabilities.numpy()
            for expert in best.tolist():
                tokens[expert] += 1
                chosen[expert] += probabilities[expert].item()
    rows = frame[(frame.domain == "english") & (frame.layer == 1)].sort_values("expert")
    # A near-tie may fall either way when the hidden states are computed in batches of another size.
    assert np.abs(rows.tokens.to_numpy() - tokens).max() <= 2
    assert rows.score_sum.to_numpy() == pytest.approx(scores, rel=1e-4)
    assert rows.top_k_score_sum.to_numpy() == pytest.approx(chosen, rel=1e-2)


def test_score_sums_of_a_sigmoid_gate_are_shares_that_sum_to_the_tokens(tiny_data) -> None:
    settings = tiny_config(tiny_data[0], model={"gate": "sigmoid"}).model
    model = build_model(settings, vocab_size=400, max_tokens=32, seed=0).eval()
    tokens = torch.randint(0, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    with record_routing(model) as layers:
        model(input_ids=tokens)
    for sums_E3, layer in zip(heldout_pass(model, tokens.numpy(), batch_size=2).sums_LE3, layers, strict=True):
        shares, chosen = np.zeros(8), np.zeros(8)
        for logits, selected in zip(layer.logits_TE.double(), layer.selected_TK, strict=True):
            scores = (1 / (1 + torch.exp(-logits))).detach().numpy()
            shares += scores / scores.sum()
            chosen[selected] += scores[selected] / scores.sum()
        assert sums_E3[:, 1].tolist() == pytest.approx(shares, rel=1e-5)
        assert sums_E3[:, 2].tolist() == pytest.approx(chosen, rel=1e-5)
        assert float(sums_E3[:, 1].sum()) == pytest.approx(60)


def test_every_token_is_counted_top_k_times_in_every_layer(trained, tmp_path: Path) -> None:
    config, folder, packed = trained
    write(config, folder, packed, tmp_path / "routing.parquet")
    table = pq.read_table(tmp_path / "routing.parquet")
    stamp = json.loads(table.schema.metadata[b"moe"])
    sums = table.to_pandas().groupby(["domain", "layer"]).sum(numeric_only=True)
    for (domain, _layer), row in sums.iterrows():
        assert row.tokens == 2 * stamp["heldout_tokens"][domain]
        assert row.score_sum == pytest.approx(stamp["heldout_tokens"][domain])


def test_latency_times_runs_side_by_side_and_leaves_them_untouched(trained, tmp_path: Path) -> None:
    _, folder, packed = trained
    before = (folder / "model" / "model.safetensors").read_bytes()
    settings = LatencyConfig(warmup=1, repeats=3, batch_sequences=2, prompt_tokens=16, decode_tokens=4)
    runs = [(folder, packed)]
    measure(runs=runs, settings=settings, hardware=HardwareConfig(), out=tmp_path / "latency.json")
    seconds = json.loads((tmp_path / "latency.json").read_text())["runs"]["tiny"]
    assert len(seconds["train_step_seconds"]) == 3
    for routing in ("learned", "balanced"):
        assert len(seconds[routing]["prefill_seconds"]) == 3
        assert len(seconds[routing]["decode_seconds"]) == 12
        assert min(seconds[routing]["decode_seconds"]) > 0
    assert (folder / "model" / "model.safetensors").read_bytes() == before
