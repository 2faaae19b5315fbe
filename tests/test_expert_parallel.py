"""The layer that is timed is a real one: two processes give what one process gives, and every row travels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moe.expert_parallel import EXPERTS, HIDDEN, PROCESSES, TOKENS, TOP_K, Layer, measure, patterns
from moe.launch import rendezvous

SCRIPT = """
import torch, torch.distributed as dist
from moe.expert_parallel import Layer
dist.init_process_group("gloo")
rank = dist.get_rank()
inputs = torch.load(f"{folder}/inputs.pt")
torch.save(Layer(rank)(*inputs[rank]), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_give_what_a_loop_over_tokens_gives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = [(torch.randn(n, HIDDEN), torch.randint(EXPERTS, (n * TOP_K,))) for n in (5, 9)]
    torch.save(inputs, tmp_path / "inputs.pt")
    common = {**rendezvous(PROCESSES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"folder = {str(tmp_path)!r}\n{SCRIPT}"]
    root = Path(__file__).parents[1]
    ranks = [
        subprocess.Popen(command, cwd=root, env=os.environ | common | {"RANK": str(rank)}) for rank in range(PROCESSES)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * PROCESSES
    experts = [
        pair for layer in map(Layer, range(PROCESSES)) for pair in zip(layer.up_OHU, layer.down_OUH, strict=True)
    ]
    for rank, (hidden_TH, selected_R) in enumerate(inputs):
        expected = torch.zeros_like(hidden_TH)
        for row, expert in enumerate(selected_R.tolist()):
            up, down = experts[expert]
            gate, value = (hidden_TH[row // TOP_K] @ up).chunk(2)
            expected[row // TOP_K] += (F.silu(gate) * value) @ down
        # fp32 products in another order.
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt"), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", TOKENS)
def test_patterns_choose_top_k_experts_a_token_and_none_more_often_than_there_are_tokens(tokens: int) -> None:
    for name, counts_PE in patterns(tokens).items():
        assert counts_PE.shape == (PROCESSES, EXPERTS)
        assert (counts_PE.sum(axis=1) == tokens * TOP_K).all(), name
        assert counts_PE.max() <= tokens, name
    rows = {name: counts_PE.reshape(2, 2, -1).sum(axis=-1) for name, counts_PE in patterns(tokens).items()}
    assert np.trace(rows["none travels"]) == 2 * tokens * TOP_K and np.trace(rows["all travel"]) == 0


def test_measured_are_all_parts_and_layers() -> None:
    found = measure(warmup=0, repeats=1)
    assert json.loads(json.dumps(found)) == found
    assert len(found["layers"]) == len(TOKENS) * len(patterns(TOKENS[0]))
    seconds = [layer["seconds"] for layer in found["layers"]]
    seconds += [value for part in ("transfer", "product", "sort") for value in found[part].values()]
    assert min(seconds) > 0


def test_processes_that_cannot_talk_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    with pytest.raises(RuntimeError):
        measure(warmup=0, repeats=1)
