"""The report: an index and one page for each experiment; each needs no network, no script and no other file.

Everything that they say comes from the records, or from `index.json` beside the tables and beside the figures. The
index opens with what became of the predictions; a page answers one experiment's question.
"""

import base64
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from moe.provenance import complete_file
from moe.report import claims, estimator_advice, measures, paper_effects, text
from moe.report.arm_settings import shared_settings
from moe.report.measure_names import MEASURES
from moe.report.outcomes import VERDICTS, Outcome, count_sentence, outcomes
from moe.report.page_provenance import provenance
from moe.report.records import Records, read_record, read_text
from moe.settings import ConfigError

EMBEDDED_BYTES = 1_000_000
"""Data files above this size are linked but not carried inside a page."""


class IndexEntry(BaseModel):
    """What `index.json` says of a table or a figure; `experiment` is empty for what belongs to the scale."""

    name: str
    file: str
    experiment: str
    section: str
    title: str
    caption: str


class TableEntry(IndexEntry):
    """A table in `tables/index.json`; without rows it is a data file."""

    columns: list[str] = []
    rows: list[list[str]] = []


class FigureEntry(IndexEntry):
    """A figure in `figures/index.json`."""

    alt: str
    data: list[str]


SECTIONS = (
    ("predictions", "Predictions"),
    ("experiment", "Results"),
    ("routing", "Specialisation"),
    ("evaluation", "Evaluation"),
    ("latency", "Speed"),
    ("settings", "Settings"),
    ("contrasts", "All contrasts"),
)
"""Sections of an experiment's page in order; one without a figure and a table is left out."""
LEAD_FIGURES = ("headline", "forest")
HEADINGS = dict(zip(VERDICTS, ("Holds", "Does not hold", "Unresolved"), strict=True))


class Report:
    """What all pages are made from; `folder` is where they lie."""

    def __init__(self, records: Records, tables: Path, figures: Path, folder: Path) -> None:
        self.records, self.folder = records, folder
        self.scale = records.table.scale
        self.command = f"snakemake --config scale={self.scale}"
        self.outcomes = outcomes(records)
        self._tables, self._figures = tables, figures
        self.tables = read_record(list[TableEntry], tables / "index.json", self.command)
        self.figures = read_record(list[FigureEntry], figures / "index.json", self.command)
        self.links = {table.file: self._link(tables / f"{table.file}.csv") for table in self.tables}

    def shown(self, experiment: str) -> list[TableEntry]:
        """Tables with rows of an experiment, or of the scale."""
        return [table for table in self.tables if table.rows and table.experiment == experiment]

    def drawn(self, experiment: str) -> list[dict[str, Any]]:
        """Figures of an experiment, or of the scale, with their pictures."""
        return [
            figure.model_dump() | self._images(figure.file)
            for figure in self.figures
            if figure.experiment == experiment
        ]

    def downloads(self, files: Sequence[str]) -> list[dict[str, Any]]:
        """Data files to be carried inside a page."""
        return [self._download(file) for file in dict.fromkeys(files)]

    def _images(self, file: str) -> dict[str, str]:
        svg, png = self._figures / f"{file}.svg", self._figures / f"{file}.png"
        content = read_text(svg, self.command).encode()
        source = "data:image/svg+xml;base64," + base64.b64encode(content).decode()
        return {"source": source, "svg": self._link(svg), "png": self._link(png)}

    def _download(self, file: str) -> dict[str, Any]:
        content = read_text(self._tables / f"{file}.csv", self.command).encode()
        small = len(content) <= EMBEDDED_BYTES
        source = "data:text/csv;charset=utf-8;base64," + base64.b64encode(content).decode() if small else ""
        return {"file": file, "bytes": len(content), "source": source}

    def _link(self, path: Path) -> str:
        """Relative link from a page."""
        return quote(os.path.relpath(path, self.folder).replace(os.sep, "/"))


def write_page(records: Path, runs: Path, tables: Path, figures: Path, out: Path) -> None:
    """Write the index to the file `out` and `<experiment>.html` beside it: `records` is `runs.json`, `runs` the folder
    of runs, `tables` and `figures` the folders that `write_tables` and `write_figures` made of the same records.

    Raises `ConfigError` for a file that is missing or damaged.
    """
    book = Records(records, runs)
    report = Report(book, tables, figures, out.parent)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in book.table.experiments:
        if out.with_name(_page(name)) == out:
            raise ConfigError(f"{records}: experiment '{name}' has the name of the index page: rename it")
        page = environment.get_template("experiment.html.j2").render(_experiment(report, name))
        _write(out.with_name(_page(name)), page)
    _write(out, environment.get_template("index.html.j2").render(_index(report)))


def _write(path: Path, page: str) -> None:
    with complete_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _page(experiment: str) -> str:
    return f"{experiment}.html"


def _index(report: Report) -> dict[str, Any]:
    """What the template of the index is filled with."""
    book = report.records
    lead, verdict, sentence = claims.headline_claim(book, report.outcomes)
    small, large = measures.end_arms(book, lead)
    tables, figures = report.shown(""), report.drawn("")
    headline_tables = [table for table in report.shown(lead) if table.name == "headline"]
    headline_figures = [figure for figure in report.drawn(lead) if figure["name"] in LEAD_FIGURES]
    recoveries = [
        table.model_copy(update={"title": f"{book.table.experiments[table.experiment].title}: {table.title.lower()}"})
        for table in report.tables
        if table.name == "recovery"
    ]
    files = [table.file for table in headline_tables + recoveries] + [
        file for figure in headline_figures for file in figure["data"]
    ]
    files += [table.file for table in report.tables if not table.experiment]
    return {
        "scale": report.scale,
        "description": book.table.description,
        "command": report.command,
        "counts": count_sentence(report.outcomes),
        "family": len(report.outcomes),
        "groups": _groups(report),
        "lead_page": _page(lead),
        "verdict": verdict,
        "sentence": sentence,
        "beside": paper_effects.quoted_contrast(book, lead, large, small),
        "headline_tables": headline_tables,
        "headline_figures": headline_figures,
        "recoveries": recoveries,
        "experiments": [_row(report, name) for name in book.table.experiments],
        "tables": tables,
        "figures": figures,
        "links": report.links,
        "downloads": report.downloads(files),
        "advice": estimator_advice.advice(book.estimators) if book.estimators else [],
        "provenance": provenance(book),
    }


def _groups(report: Report) -> list[dict[str, Any]]:
    """The predictions by verdict; none without any prediction."""
    if not report.outcomes:
        return []
    rows = [(outcome.verdict, _outcome_row(report, outcome)) for outcome in report.outcomes]
    return [
        {"verdict": verdict, "title": HEADINGS[verdict], "rows": [row for found, row in rows if found == verdict]}
        for verdict in VERDICTS
    ]


def _outcome_row(report: Report, outcome: Outcome) -> dict[str, str]:
    item, difference = outcome.expectation, outcome.difference
    experiment = report.records.table.experiments[outcome.experiment]
    return {
        "claim": item.claim,
        "page": _page(outcome.experiment),
        "title": experiment.title,
        "contrast": f"{outcome.contrast}: {outcome.predicted}",
        "difference": text.interval(difference),
        "measure": MEASURES[item.measure],
        "seeds": str(difference.n if difference else 0),
        "p": text.p_value(outcome.p),
        "p_holm": text.p_value(outcome.p_holm),
        "p_holm_all": text.p_value(outcome.p_holm_all),
        "paper": paper_effects.quoted_contrast(
            report.records, outcome.experiment, item.first, item.second, item.measure
        ),
    }


def _row(report: Report, name: str) -> dict[str, Any]:
    """One line of the table of experiments."""
    book, experiment = report.records, report.records.table.experiments[name]
    counts = Counter(outcome.verdict for outcome in report.outcomes if outcome.experiment == name)
    first, difference, beside = "one arm", "–", paper_effects.NOT_PRINTED
    if pairs := book.contrasts(name)[:1]:
        measured = measures.arm_difference(measures.run_frame(book, name), "heldout_nats", *pairs[0])
        first, difference = f"{pairs[0][0]} − {pairs[0][1]}", text.interval(measured)
        beside = paper_effects.quoted_contrast(book, name, *pairs[0])
    return {
        "page": _page(name),
        "title": experiment.title,
        "question": experiment.question,
        "paper": experiment.paper,
        "arms": len(book.arms(name)),
        "seeds": _seeds(book, name),
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "contrast": first,
        "difference": difference,
        "beside": beside,
    }


def _seeds(records: Records, name: str) -> str:
    counts = sorted({len(seeds) for seeds in records.arms(name).values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _experiment(report: Report, name: str) -> dict[str, Any]:
    """What the template of an experiment's page is filled with."""
    book, experiment = report.records, report.records.table.experiments[name]
    tables, figures = report.shown(name), report.drawn(name)
    parts = [
        {
            "name": section,
            "title": title,
            "tables": [table for table in tables if table.section == section],
            "figures": [figure for figure in figures if figure["section"] == section],
        }
        for section, title in SECTIONS
    ]
    own = [table.file for table in report.tables if table.experiment == name]
    axes = experiment.axes.values()
    fields = [field for axis in axes for field in (axis.field, *chain(*axis.arms.values())) if field]
    claim = claims.window_claim(book, name)
    return {
        "scale": report.scale,
        "name": name,
        "title": experiment.title,
        "arms": len(book.arms(name)),
        "seeds": f"{_seeds(book, name)} seeds each",
        "question": experiment.question,
        "prediction": experiment.prediction,
        "outcomes": [
            {"verdict": outcome.verdict, "claim": outcome.expectation.claim}
            for outcome in report.outcomes
            if outcome.experiment == name
        ],
        "verdict": claim[0] if claim else None,
        "sentence": claim[1] if claim else "",
        "contrasts": claims.contrast_sentences(book, name),
        "paper": experiment.paper,
        "note": text.paper_note(experiment.paper),
        "fields": ", ".join(dict.fromkeys(fields)),
        "shared": shared_settings(book, name),
        "command": f"{report.command} experiments={name}",
        "sections": [part for part in parts if part["tables"] or part["figures"]],
        "links": report.links,
        "downloads": report.downloads([*own, *(file for figure in figures for file in figure["data"])]),
    }
