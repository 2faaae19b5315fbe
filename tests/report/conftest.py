"""Synthetic records, and everything that is drawn from them, made once for all tests of the report."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe.report.figures import write_figures
from moe.report.page import write_page
from moe.report.tables import write_tables

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec and _spec.loader
synthetic_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic_module)


def draw(root, **options):
    """Records, tables, figures and pages below `root`; `page` is the index."""
    records, runs = synthetic_module.write_records(root, **options)
    write_tables(records, runs, root / "tables")
    write_figures(records, runs, root / "figures")
    write_page(records, runs, root / "tables", root / "figures", root / "report" / "index.html")
    pages = {path.name: path.read_text() for path in (root / "report").iterdir()}
    return SimpleNamespace(
        root=root, records=records, runs=runs, tables=root / "tables", figures=root / "figures",
        page=pages["index.html"], pages=pages,
    )  # fmt: skip


@pytest.fixture(scope="session")
def synthetic():
    """The module that writes synthetic records."""
    return synthetic_module


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The headline experiment with predictions: four arms, three seeds."""
    experiments = {"balance_window": synthetic_module.PREDICTED_EXPERIMENT}
    return draw(tmp_path_factory.mktemp("drawn"), experiments=experiments)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """One seed, no latency, no task, no estimators, no window axis, and names that are HTML."""
    markup = "<script>alert('x')</script>"
    picture = '"><img src=x onerror=alert(1)>'
    table = "a | b\n\n# [c](javascript:alert(1)) &lt;"
    arms = {
        f"{markup} $1 & $2": {}, "high": {"train.learning_rate": 0.01}, picture: {"balance.terms": []},
        table: {"train.learning_rate": 0.02},
    }  # fmt: skip
    experiment = {
        "title": f"Rates {markup}", "question": f"Which rate? {picture}", "prediction": f"None. {markup}",
        "paper": f"Table 1 {picture}", "axes": {"rate": {"arms": arms}},
    }  # fmt: skip
    experiments = {"rates": synthetic_module.Experiment.model_validate(experiment)}
    domains = (markup, picture, table, *synthetic_module.DOMAINS[3:])
    root = tmp_path_factory.mktemp("hostile")
    absent = dict.fromkeys(("latency", "tasks", "estimators", "drop"), False)
    return draw(root, experiments=experiments, seeds=(5,), domains=domains, **absent)
