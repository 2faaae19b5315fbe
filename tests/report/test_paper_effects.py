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


def test_effects_keep_the_order_of_the_items_and_the_main_one_stands_for_each():
    assert paper_effects.effects("Table 4, Table 2")["item"].unique().tolist() == ["Table 4", "Table 2"]
    said = paper_effects.main_effects("Table 1, Figure 1 and 2")
    assert said.startswith("Table 1: −0.0159 (LBL, 512 − 4; 3.4B-A0.6B, 120B); Figure 2: −0.0254")
    assert paper_effects.main_effects("a question of our own") == ""
    assert paper_effects.effects("").empty and paper_effects.shares("").empty
