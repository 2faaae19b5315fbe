"""The page stands alone, says what the numbers say, and shows names as text."""

import base64
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from moe.provenance import code_fingerprint
from moe.report import page_provenance
from moe.report.page import write_page
from moe.settings import ConfigError


class Elements(HTMLParser):
    """Start tags with their attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def test_nothing_is_loaded_from_elsewhere(drawn, hostile):
    for page in (*drawn.pages.values(), *hostile.pages.values()):
        elements = Elements(page)
        assert not elements.named("script", "iframe", "object", "embed")
        for tag, attributes in elements.found:
            for name in ("src", "href", "srcset", "poster", "action"):
                value = attributes.get(name) or ""
                assert not re.match(r"(?i)\s*(https?:|//|file:)", value), (tag, value[:80])
                if tag in ("img", "link"):
                    assert value.startswith("data:") or not value
        assert "@import" not in page
        assert "url(" not in page


def test_links_lead_to_the_data_behind_every_figure_and_copies_are_carried_along(drawn):
    folder, all_carried = drawn.root / "report", set()
    for page in drawn.pages.values():
        elements = Elements(page)
        ids = {attributes["id"] for _, attributes in elements.found if attributes.get("id")}
        for link in elements.named("a"):
            if link["href"].startswith("#"):
                assert link["href"][1:] in ids
            elif not link["href"].startswith("data:"):
                name, _, part = unquote(link["href"]).partition("#")
                assert (folder / name).exists()
                assert not part or f'id="{part}"' in drawn.pages[name]
        carried = {link["download"]: link["href"] for link in elements.named("a") if "download" in link}
        for name, source in carried.items():
            assert base64.b64decode(source.split(",", 1)[1]) == (drawn.tables / name).read_bytes()
        all_carried |= set(carried)
    assert all_carried == {path.name for path in drawn.tables.glob("*.csv")}


def test_names_that_are_markup_show_as_text(hostile):
    for page in hostile.pages.values():
        assert "<script" not in page
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_no_name_adds_an_element_or_an_attribute(hostile):
    for page in hostile.pages.values():
        elements = Elements(page)
        assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
        assert all(image["src"].startswith("data:image/svg+xml") for image in elements.named("img"))
        assert "javascript:" not in "".join(attributes.get("href") or "" for _, attributes in elements.found)
        assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;" in page


def infect(node, kept=()):
    """The record with markup behind every text, but for the texts under the keys of `kept`."""
    if isinstance(node, dict):
        return {key: value if key in kept else infect(value, kept) for key, value in node.items()}
    if isinstance(node, list):
        return [infect(value, kept) for value in node]
    return f"{node}{MARKUP}" if isinstance(node, str) else node


MARKUP = "</td></svg>\"'><img src=x onerror=alert(1)><script>alert(2)</script>"


def test_no_text_of_any_record_adds_an_element(drawn, tmp_path):
    shutil.copytree(drawn.root, tmp_path / "copy")
    root = tmp_path / "copy"
    kept = {
        "runs.json": ("schema", "runs", "axes", "contrasts", "measure", "first", "second", "direction", "recovery"),
        "train.json": ("schema",),
        "evaluation.json": ("schema",),
        "latency.json": ("schema", "settings"),
        "index.json": ("name", "file", "experiment", "section", "data"),
    }
    for path in [path for path in root.rglob("*.json") if path.name in kept]:
        path.write_text(json.dumps(infect(json.loads(path.read_text()), kept[path.name])))
    write_page(root / "runs.json", root / "runs", root / "tables", root / "figures", root / "report" / "index.html")
    for name, original in drawn.pages.items():
        page = (root / "report" / name).read_text()
        assert page.count("&lt;script&gt;alert(2)") > 50
        clean, found = Elements(original), Elements(page)
        # Every run is of other code now, which the page may mark.
        assert [tag for tag, _ in found.found] == [tag for tag, _ in clean.found]
        names = [{name for _, attributes in elements.found for name in attributes} for elements in (found, clean)]
        assert names[0] == names[1]


@pytest.mark.parametrize("name", ["index.html", "balance_window.html"])
def test_the_page_is_marked_up_for_readers_of_every_kind(drawn, name):
    elements = Elements(drawn.pages[name])
    assert elements.named("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in elements.named("meta"))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert levels.count(1) == 1
    assert all(image["alt"] for image in elements.named("img"))
    assert len(elements.named("caption")) == len(elements.named("table"))
    assert all(cell.get("scope") in ("col", "row") for cell in elements.named("th"))
    ids = [attributes["id"] for _, attributes in elements.found if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_every_figure_and_shown_table_is_on_its_experiments_page_once(drawn):
    figures = json.loads((drawn.figures / "index.json").read_text())
    tables = [entry for entry in json.loads((drawn.tables / "index.json").read_text()) if entry.get("rows")]
    own = Elements(drawn.pages["balance_window.html"])
    assert len(own.named("img")) == sum(entry["experiment"] == "balance_window" for entry in figures)
    assert len(own.named("table")) == sum(entry["experiment"] == "balance_window" for entry in tables)
    # The index repeats the headline, two figures and a table, and the shares of the gain.
    index = Elements(drawn.page)
    assert len(index.named("img")) == sum(not entry["experiment"] for entry in figures) + 2
    shown = [entry for entry in tables if not entry["experiment"] and entry["name"] != "predictions"]
    verdicts = 3  # the predictions, one table for each verdict; all three occur
    assert len(index.named("table")) == len(shown) + verdicts + 4  # the headline, the shares, the experiments, the runs


def test_the_page_of_an_experiment_has_all_that_its_reader_asks(drawn, synthetic):
    page, experiment = drawn.pages["balance_window.html"], synthetic.PREDICTED_EXPERIMENT
    for said in (experiment.title, experiment.question, experiment.prediction, experiment.paper):
        assert said in page
    assert "<code>snakemake --config scale=cpu experiments=balance_window</code>" in page
    assert "<code>train.steps</code> 400" in page  # shared
    assert '<th scope="col">balance.terms.0.window</th>' in page  # differs
    sections = re.findall(r'<h2 id="(\w+)">', page)
    assert sections == [
        "question", "predictions", "experiment", "routing", "evaluation", "latency", "settings", "contrasts", "data",
    ]  # fmt: skip
    assert "Shares of the gain" in drawn.page and "Figure 2: −0.0254 (3.4B, 400B)" in drawn.page


def test_an_experiment_with_the_name_of_the_index_is_refused(tmp_path, drawn):
    table = json.loads(drawn.records.read_text().replace('"balance_window"', '"index"'))
    (drawn.root / "other.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="'index' has the name of the index page"):
        write_page(drawn.root / "other.json", drawn.runs, drawn.tables, drawn.figures, tmp_path / "index.html")


def test_the_headline_says_what_the_interval_says(drawn, hostile):
    assert "lowers the held-out loss" in drawn.page
    assert "The paper&#39;s claim holds at this scale." in drawn.page
    assert "no interval" in hostile.page
    assert "claim holds" not in hostile.page


def test_a_run_of_other_code_is_marked_stale_unless_that_makes_the_same_records(tmp_path, drawn, monkeypatch):
    out = tmp_path / "index.html"
    run = drawn.runs / "balance_window-0-s0" / "train.json"
    original = run.read_text()
    monkeypatch.setattr(page_provenance, "EQUAL_CODE", {"1" * 12: "another word in a docstring"})
    pages = []
    try:
        for code in ("0" * 12, "1" * 12):
            run.write_text(original.replace(code_fingerprint(), code))
            write_page(drawn.records, drawn.runs, drawn.tables, drawn.figures, out)
            pages.append(out.read_text())
    finally:
        run.write_text(original)
    assert [page.count('class="stale"') for page in (*pages, drawn.page)] == [1, 0, 0]
    assert "1 of 12" in pages[0]
    assert "0 of 12" in pages[1]
    assert f"{'1' * 12} (another word in a docstring)" in pages[1]


def test_missing_tables_are_named(tmp_path, drawn):
    with pytest.raises(ConfigError, match=r"index\.json: missing; make it with: snakemake"):
        write_page(drawn.records, drawn.runs, tmp_path / "none", drawn.figures, tmp_path / "index.html")
