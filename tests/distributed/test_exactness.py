"""Real processes over gloo: loss and gradients of the whole batch, with one collective per forward pass at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe.balance.windows import Layout
from moe.launch import rendezvous
from tests import exactness
from tests.distributed.rank import CURVE, STEPS, TERMS, cases

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """What every rank found."""
    number, folder = request.param, tmp_path_factory.mktemp("ranks")
    common = {**rendezvous(number), "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.rank", str(folder)],
            env={**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"},
            cwd=REPOSITORY,
        )
        for i in range(number)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * number
    return [torch.load(folder / f"{i}.pt", weights_only=True) for i in range(number)]


def test_loss_and_gradients_of_uneven_ranks_are_those_of_the_whole_batch(ranks) -> None:
    compared = 0
    for i, (terms, _, padded, _) in enumerate(cases(len(ranks))):
        config = exactness.run_config(TERMS[terms])
        if any(term.estimator != "exact" for term in config.balance.terms):
            continue
        tokens, mask = exactness.batch(i, padded=padded)
        expected_loss, expected = exactness.whole_batch(config, tokens, mask, torch.float64)
        for rank in ranks:
            assert rank[i]["loss"] == pytest.approx(expected_loss, rel=1e-10)
            assert exactness.relative_error(rank[i]["gradients"], expected) < 1e-10
        compared += 1
    assert compared == 4 * len({sizes for _, sizes, _, _ in cases(len(ranks))})


def test_all_layers_and_terms_share_one_collective_per_forward_pass(ranks) -> None:
    for i, (terms, sizes, _, _) in enumerate(cases(len(ranks))):
        layout, term_list = Layout(sizes), exactness.run_config(TERMS[terms]).balance.terms
        reach = [
            exactness.BATCH if term.shuffled else int(term.window) for term in term_list if term.estimator == "exact"
        ]
        counted = any(layout.spans_passes(window) for window in reach)
        forward_passes = layout.num_passes * (1 + counted)
        for rank in ranks:
            # The last reduction is that of the logged values, once per measured step, not per pass.
            *reductions, logged = rank[i]["reductions"]
            assert logged[0] == 2 + len(TERMS[terms])
            assert 1 <= len(reductions) <= forward_passes
            assert all(len(shape) == 3 and shape[0] == 2 for shape in reductions), "one tensor for both layers"


def test_fifty_steps_on_several_ranks_follow_the_curve_of_one(ranks) -> None:
    alone = exactness.curve(CURVE, sizes=((exactness.BATCH,),), steps=STEPS)
    assert alone[-1][0] < 0.5 * alone[0][0], "the model has learned meanwhile"
    for rank in ranks:
        for expected, found in zip(alone, rank[-1]["curve"], strict=True):
            # Training amplifies rounding from step to step.
            assert found == pytest.approx(expected, rel=1e-9)


def test_ranks_agree_bit_for_bit(ranks) -> None:
    for first, *others in zip(*(rank[:-1] for rank in ranks), strict=True):
        for other in others:
            assert other["loss"] == first["loss"]
            assert all(torch.equal(other["gradients"][k], v) for k, v in first["gradients"].items())
