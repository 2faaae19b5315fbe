"""The paper's effects are logarithms of ratios of the perplexities that it prints."""

import math

import pytest

from moe.report import paper, paper_effects

ITEMS = "Tables 1, 2, 3, 4, 5, Figure 2"


def test_effects_at_known_points():
    effects = paper_effects.effects(ITEMS).set_index(["item", "comparison", "tokens"])["nats"]
    assert effects["Table 1", "LBL, 512 − 4", "120B"] == pytest.approx(math.log(8.038 / 8.167))
    assert effects["Table 1", "LBL, 512 − 4", "120B"] == pytest.approx(-0.0159, abs=5e-5)
    assert effects["Table 3", "2 → 512 at 10k − never", "400B"] == pytest.approx(math.log(7.283 / 7.383))
    assert effects["Table 5", "hybrid − global", "120B"] == pytest.approx(math.log(5.795 / 5.779))


def test_shares_are_those_that_the_notes_quote():
    shares = paper_effects.shares("Table 2")["share"].tolist()
    assert [f"{100 * share:.0f} %" for share in shares] == ["98 %", "91 %"]
    assert "98 % (120B) and 91 % (400B)" in paper.NOTES["Table 2"]


def test_effects_keep_the_order_of_the_items():
    assert paper_effects.effects("Table 4, Table 2")["item"].unique().tolist() == ["Table 4", "Table 2"]
    assert paper_effects.effects("").empty and paper_effects.shares("").empty


def config(synthetic, *terms, bias=None, gate="softmax", **train):
    fields = {"balance.terms": list(terms), "balance.bias": bias, "model.gate": gate}
    return synthetic.run_config(fields | {f"train.{key}": x for key, x in train.items()}, 0)


GLOBAL, SEQUENCE = {"window": "global"}, {"window": 1}


@pytest.mark.parametrize(
    ("items", "first", "second", "printed"),
    [
        ("Table 1", [GLOBAL], [SEQUENCE], "Table 1: −0.0159 (3.4B, 120B), −0.0205 (3.4B, 400B), −0.0308 (15B, 400B)"),
        ("Figure 2", [SEQUENCE], [GLOBAL], "Figure 2: +0.0254 (3.4B, 400B)"),
        ("Table 2", [SEQUENCE | {"shuffled": True}], [GLOBAL], "Table 2: +0.0004 (3.4B, 120B), +0.0022 (3.4B, 400B)"),
        (
            "Table 5", [GLOBAL, SEQUENCE | {"weight": 0.0001, "start_step": 133}], [GLOBAL],
            "Table 5: +0.0028 (43B, 120B)",
        ),
        ("Table 5", [GLOBAL, SEQUENCE | {"weight": 0.0001}], [GLOBAL], "–"),  # from the start
        (
            "Table 3", [SEQUENCE | {"end_step": 40}, GLOBAL | {"start_step": 40}], [SEQUENCE],
            "Table 3: −0.0136 (3.4B, 400B)",
        ),
        ("Table 3", [SEQUENCE | {"end_step": 100}, GLOBAL | {"start_step": 100}], [SEQUENCE], "–"),  # at 25 %
        ("Table 1", [GLOBAL], [SEQUENCE | {"estimator": "prefix"}], "–"),
        ("Table 1", [{"window": 4}], [SEQUENCE], "–"),  # both micro
        ("Table 1", [{"window": 16}], [SEQUENCE], "–"),
        ("Table 4", [GLOBAL], [], "–"),
        ("Table 4", [GLOBAL], [SEQUENCE], "–"),  # another weight than 0.008
        ("Table 1", [GLOBAL | {"weight": 0.008}], [SEQUENCE | {"weight": 0.008}], "–"),  # another than the scale's
        ("Table 4", [GLOBAL | {"weight": 0.008}], [SEQUENCE | {"weight": 0.008}], "Table 4: −0.0159 (3.4B, 120B)"),
        (
            "Table 4", [SEQUENCE | {"weight": 0.004}], [SEQUENCE | {"weight": 0.008}],
            "Table 4: −0.0016 (3.4B, 120B)",
        ),
        ("Table 2", [GLOBAL, SEQUENCE], [GLOBAL], "–"),
        ("a question of our own", [GLOBAL], [SEQUENCE], "–"),
    ],
)  # fmt: skip
def test_two_runs_stand_beside_what_the_paper_prints_of_the_same_two(synthetic, items, first, second, printed):
    runs = config(synthetic, *first), config(synthetic, *second)
    assert paper_effects.quoted_effect(items, *runs, weight=0.01) == printed


def test_the_bias_is_compared_with_the_loss_and_with_itself(synthetic):
    def quoted(*runs):
        return paper_effects.quoted_effect("Table 1", *runs, weight=0.01)

    local, pooled = (config(synthetic, bias={"window": window}, gate="sigmoid") for window in (1, "global"))
    assert quoted(pooled, local) == "Table 1: −0.0531 (3.4B, 120B)"
    assert quoted(local, config(synthetic, SEQUENCE)).startswith("Table 1: +0.0424")
    # The paper has no bias with a softmax gate, and no loss with a sigmoid one.
    assert quoted(*(config(synthetic, bias={"window": window}) for window in ("global", 1))) == "–"
    assert quoted(*(config(synthetic, term, gate="sigmoid") for term in (GLOBAL, SEQUENCE))) == "–"


def test_runs_that_differ_in_more_than_their_balance_stand_beside_nothing(synthetic):
    more = config(synthetic, GLOBAL, learning_rate=0.01)
    assert paper_effects.quoted_effect("Table 1", more, config(synthetic, SEQUENCE), weight=0.01) == "–"
    buffer = config(synthetic, GLOBAL | {"estimator": "prefix"}, sequences_per_pass=4)
    printed = paper_effects.quoted_effect("Table 1", buffer, config(synthetic, SEQUENCE), weight=0.01)
    assert printed.startswith("Table 1: −0.0143")
