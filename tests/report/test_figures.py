"""Figures are the same bytes for the same records, carry their labels as text, and load nothing."""

import json
import xml.etree.ElementTree as ElementTree

import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from moe.report.figures import write_figures
from moe.report.records import Records
from moe.report.routing_figures import heatmap_drawing, profile_drawing
from moe.report.style import COLOURS, arm_styles, context

LABELS = {
    "headline": ("held-out loss (nats/token)", "Balance BSZ (sequences)"),
    "training": ("nats/token", "optimizer step", "LM loss, without balance terms"),
    "selection": ("selection frequency (share of a domain's selections)", "domain", "uniform"),
    "profile": ("selection frequency (share)", "experts, busiest first (rank)", "uniform (1/E)"),
    "scores": ("top-K score sum (probability)", "layer", "uniform (K/E)"),
    "layers": ("JSD (nats)", "mutual information (nats)", "layer"),
    "latency": ("training step (ms)", "time per decoded position (ms)", "arm"),
}


def words(path):
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(path).iter() if node.tag.endswith("}text")]


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_text_with_their_units(drawn, name):
    found = words(drawn.figures / f"balance_window-{name}.svg")
    assert set(LABELS[name]) <= set(found)
    assert (drawn.figures / f"balance_window-{name}.png").stat().st_size > 10_000


def test_a_second_drawing_is_byte_identical_whatever_the_users_style(drawn, tmp_path):
    Figure()  # matplotlib's own state must not matter, nor a style the user has set
    import matplotlib

    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "red"}):
        write_figures(drawn.records, drawn.runs, tmp_path / "again")
    names = sorted(path.name for path in drawn.figures.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (drawn.figures / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_name_that_is_markup_or_formula_is_drawn_as_text(hostile):
    for path in hostile.figures.glob("*.svg"):
        nodes = list(ElementTree.parse(path).iter())
        assert not [node for node in nodes if node.tag.split("}")[-1] in ("script", "img", "foreignObject", "a")]
        assert not [name for node in nodes for name in node.attrib if name.startswith("on")]
    # Long labels are broken into lines.
    assert "<script>alert('x')</script>" in "".join(words(hostile.figures / "rates-profile.svg"))
    assert '"><img' in "".join(words(hostile.figures / "rates-headline.svg"))
    assert "$1 & $2" in "".join(words(hostile.figures / "rates-headline.svg"))


def test_arms_without_a_window_axis_are_drawn_as_differences(hostile):
    found = words(hostile.figures / "rates-headline.svg")
    assert "difference of held-out loss (nats/token)" in found
    assert "Balance BSZ (sequences)" not in found


def test_runs_that_were_not_timed_have_no_latency_figure(hostile):
    names = [entry["name"] for entry in json.loads((hostile.figures / "index.json").read_text())]
    assert "latency" not in names
    assert "headline" in names


def test_every_figure_names_data_that_is_written(drawn):
    for entry in json.loads((drawn.figures / "index.json").read_text()):
        assert entry["data"]
        assert all((drawn.tables / f"{name}.csv").exists() for name in entry["data"])


def test_a_layer_is_called_the_middle_one_only_where_it_is(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path, seeds=(0,))

    def captions():
        with context():
            drawn = [make(Records(records, runs), "balance_window") for make in (heatmap_drawing, profile_drawing)]
        return [drawing.caption for drawing in drawn]

    assert all("layer 1 (the middle one)" in caption for caption in captions())  # of three
    for path in runs.glob("*/routing.parquet"):
        pq.write_table(pq.read_table(path, filters=[("layer", "<", 2)]), path)
    assert all("layer 1 of 0 to 1" in caption and "middle" not in caption for caption in captions())


def test_many_arms_keep_apart_by_colour_or_line():
    styles = arm_styles([str(i) for i in range(2 * len(COLOURS))])
    assert len({(style.colour, style.line) for style in styles.values()}) == len(styles)
