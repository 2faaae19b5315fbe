"""A property holds for the definition and for nothing that breaks it."""

import pytest
import torch

from moe.conformance import batches
from moe.conformance.kit import run_step
from moe.conformance.properties import PROPERTIES
from moe.conformance.targets import BUILT_IN, examine, load
from tests.conformance import wrong

EVERY = {check.__name__ for check in PROPERTIES.values()}
SHARES = {"uneven", "uneven_padding", "over_ranks", "over_passes"}
WRONG = {
    wrong.SumsToK: {"uniform", "collapse", "top_k"},
    wrong.KnowsOnlyTop2: {"top_k"},
    wrong.Capped: {"collapse"},
    wrong.PoolsLayers: {"layers"},
    wrong.TimesRanks: {"ranks"},
    wrong.LogsTimesRanks: {"ranks"},
    wrong.TimesSteps: {"accumulation"},
    wrong.OverMicroBatchSize: {"uniform", "collapse", "top_k", "micro_batch"} | SHARES,
    wrong.MeanOfMeans: {"uneven", "uneven_padding"},
    wrong.CountsPadding: {"padding"},
    wrong.WeighsBySequences: {"uneven_padding"},
    wrong.OneRank: {"over_ranks"},
    wrong.OnePass: {"over_passes"},
    wrong.CountsInside: {"over_passes", "recomputation"},
    wrong.CountsEvaluation: {"over_passes", "recomputation", "evaluation"},
    wrong.NeverEmptied: {"over_passes", "recomputation", "evaluation", "fresh_step"},
    wrong.Detached: {"gradient", "hybrid"},
    wrong.FirstLayerOnly: {"gradient"},
    wrong.NormalisesWeights: {"hybrid"},
    wrong.OneLoss: {"hybrid"},
    wrong.Raises: EVERY,
}


def failing(target: type) -> set[str]:
    found = examine(target)
    return {check.__name__ for title, check in PROPERTIES.items() if found[title].outcome == "fails"}


@pytest.mark.parametrize("target", WRONG, ids=lambda target: target.__name__)
def test_a_fault_breaks_the_property_that_it_is_about_and_no_other(target: type) -> None:
    assert failing(target) == WRONG[target]


def test_every_property_can_fail_without_raising() -> None:
    assert set().union(*(broken for target, broken in WRONG.items() if target is not wrong.Raises)) == EVERY


def test_every_property_holds_for_the_definition_and_for_ours() -> None:
    assert failing(wrong.Right) == set()
    assert [finding for finding in examine(load("ours")).values() if finding.outcome != "holds"] == []


def test_a_gradient_that_is_not_finite_fails() -> None:
    assert "gradient" in failing(wrong.NotFinite)


def test_a_small_deviation_is_told_in_digits_that_show_it() -> None:
    class Slightly(wrong.Right):
        def factor(self, layers):
            return super().factor(layers) * (1 + 1e-6 * (self.step.num_ranks - 1))

    finding = examine(Slightly)["scale: data-parallel size"]
    assert finding.outcome == "fails" and finding.detail.endswith("gradient x 1.000003")


def test_ours_is_the_definition_in_value_and_gradient() -> None:
    batch, sizes = batches.padded([4, 1, 2, 1]), ((1, 1), (1, 1))
    weights = {"global_weight": 0.7, "micro_weight": 0.2}
    ours, right = (run_step(target(**weights), batch, sizes) for target in (load("ours"), wrong.Right))
    assert ours.value == pytest.approx(right.value, rel=1e-12)
    assert torch.allclose(ours.gradient, right.gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["megatron", "prefix"])
def test_a_re_implementation_is_the_definition_where_nothing_is_split(name: str) -> None:
    batch = batches.domains([0, 0, 1, 2])
    found, right = (run_step(target(), batch, ((4,),)) for target in (load(name), wrong.Right))
    assert found.value == pytest.approx(right.value, rel=1e-12)
    # Megatron-LM adds its layers up, where it logs their mean.
    factor = batches.NUM_LAYERS if name == "megatron" else 1
    assert torch.allclose(found.gradient, factor * right.gradient, rtol=1e-12, atol=1e-15)


def test_a_prefix_pools_what_it_has_seen_so_far() -> None:
    batch = batches.domains([0, 1])
    scores = batch.hidden_LSNE.softmax(dim=-1).mean(dim=2)
    first, second = torch.zeros(2, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)
    for layer in range(2):
        first[layer, [2 * layer, 2 * layer + 1]] = 1 / 2
        second[layer, [2 * layer, 2 * layer + 1, 2 * layer + 2, 2 * layer + 3]] = 1 / 4
    expected = 8 * (first * scores[:, 0] + second * scores[:, 1]).sum() / (2 * 2)
    for name in ("prefix", "megatron"):
        assert run_step(load(name)(), batch, ((1,), (1,))).value == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_losses_of_a_recomputed_region_are_taken_once(reentrant: bool) -> None:
    class Inside(wrong.Right):
        """The loss of a layer is made and attached within its forward."""

        def inside(self, pass_index, layer, ranks):
            known, scores = self.known(pass_index, 0)[layer], [self.scores([routing])[0] for routing in ranks]
            return [self.factor([]) * (self.share(known) * own).sum() for own in scores]

        def losses(self, pass_index, ranks):
            return ()

    Inside.reentrant = reentrant
    batch, sizes = batches.domains([0, 0, 1, 2]), ((1, 1), (1, 1))
    right = run_step(wrong.Right(), batch, sizes)
    for recompute in (False, True):
        found = run_step(Inside(), batch, sizes, recompute=recompute)
        assert found.value == pytest.approx(right.value, rel=1e-12)
        assert torch.allclose(found.gradient, right.gradient, rtol=1e-12, atol=1e-15)


def test_built_ins_name_their_version_or_say_that_they_are_re_implemented() -> None:
    said = {name: " ".join((load(name).__doc__ or "").split()) for name in BUILT_IN}
    assert [name for name, text in said.items() if "re-implemented" in text] == ["megatron", "prefix"]
    assert "commit" in said["megatron"]
