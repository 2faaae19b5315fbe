"""The training benchmark compares equal work, and its floor is all of the arithmetic."""

import copy
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training
from benchmarks.__main__ import draw
from benchmarks.contenders import CONTENDERS, FLOORS
from benchmarks.floor import Product, floor, num_flops, products
from moe.config import RunConfig
from moe.model.build import stock_model
from moe.settings import parse
from tests.benchmarks.recorded import RECORD


@pytest.fixture
def config() -> RunConfig:
    raw = {
        "model": {"hidden_size": 16, "num_layers": 2, "num_experts": 4, "top_k": 2, "expert_size": 8, "num_heads": 2},
        "data": {
            "domains": [{"name": "a", "source": {"kind": "files", "paths": ["-"]}}],
            "vocab_size": 260,
            "sequence_length": 16,
        },
        "train": {"batch_sequences": 4, "micro_sequences": 4},
    }
    return parse(RunConfig, raw, "test")


def test_the_products_of_the_floor_are_those_of_the_stock_model_with_half_of_its_attention(config: RunConfig) -> None:
    model = stock_model(config.model, vocab_size=config.data.vocab_size, max_tokens=16, seed=0)
    model.set_attn_implementation("eager")  # its products are batched ones, and nothing else is
    model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(260, (4, 16)), use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    attention = counts.pop(torch.ops.aten.bmm)
    assert attention == 2 * 2 * 4 * 2 * (2 * 16 * 8 * 16)  # layers, scores and values, sequences, heads, one product
    assert num_flops(config) == 3 * (sum(counts.values()) + attention // 2)


@pytest.mark.parametrize("warm", [True, False])
def test_the_floor_does_every_product_with_both_of_its_gradients(config: RunConfig, warm: bool) -> None:
    seconds = floor(config, warm=warm)
    with FlopCounterMode(display=False) as counter:
        assert seconds() > 0
    assert counter.get_total_flops() == num_flops(config)


def test_a_product_counts_a_multiplication_and_an_addition_three_times() -> None:
    assert Product(rows=2, inner=3, columns=5, count=7, batch=11).flops == 3 * 2 * 2 * 3 * 5 * 7 * 11


def test_larger_shapes_have_more_arithmetic() -> None:
    cpu, wide, large = (num_flops(config) for config in training.shapes().values())
    assert 5 * cpu < wide < large
    assert len(products(training.shapes()["cpu"])) == 7


def test_contenders_find_the_same_loss_and_gradient_and_run_so_many_steps(config: RunConfig) -> None:
    answers = {}
    for name in ("ours, not compiled", "Trainer, grouped_mm", "plain loop, eager"):
        run, check = CONTENDERS[name](config)
        answers[name] = check()
        assert len(run(2)) == 2
    training.check_equal(answers, 1e-4)


def test_a_contender_that_trains_another_model_stops_the_benchmark_before_any_step(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        def __init__(self, name: str, config_file: Path) -> None:
            self.name = name

        def ask(self, command: str | int) -> object:
            assert command in ("memory", "check")
            return [5.0, 2.0 + 0.001 * (self.name == "Trainer, eager")]

        def __enter__(self) -> "Process":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(training, "Process", Process)
    with pytest.raises(RuntimeError, match=r"'ours' and 'Trainer, eager' do not train the same model: gradient norm"):
        training._shape(config, tmp_path)


def test_a_process_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    absent = tmp_path / "absent.json"
    with training.Process("floor", absent) as process, pytest.raises(RuntimeError, match=r"'floor' stopped: .*absent"):
        process.ask(1)


def test_the_text_names_ratio_spread_and_target() -> None:
    lines = training.text(RECORD).splitlines()
    assert "  Trainer, grouped_mm / ours: 1.50 (1.50..2.00)   target at least 1.5, aim 2.0" in lines
    assert "  ours / floor: 2.00 (1.50..2.00) (50.0 ms, 50% of our step)   target at most 2.0, aim 1.5" in lines
    machine = "  best of ours / best of Trainer, grouped_mm: 1.40 (1.30..1.60)   target at least 1.5, aim 2.0"
    assert lines[-1] == machine


def test_a_contender_that_does_not_start_is_named_with_its_reason() -> None:
    record = copy.deepcopy(RECORD)
    record["shapes"]["cpu"]["failed"] = {"Trainer, sonicmoe": "'Trainer, sonicmoe' stopped: no kernel"}
    assert "does not start: 'Trainer, sonicmoe' stopped: no kernel" in training.text(record)


def test_the_figure_shows_every_contender_and_the_floor(tmp_path: Path) -> None:
    draw(RECORD, tmp_path)
    svg = "".join(ElementTree.parse(tmp_path / "training.svg").getroot().itertext())
    assert all(name in svg for name in (*RECORD["shapes"]["cpu"]["contenders"], "matrix products alone", "ms"))
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert set(FLOORS) == set(RECORD["shapes"]["cpu"]["floors"])
