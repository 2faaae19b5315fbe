"""The report: one HTML page that needs no network, no script and no other file.

Everything that it says comes from the records, or from `index.json` beside the tables and beside the figures.
"""

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from moe.provenance import code_fingerprint, complete_file
from moe.report import claims, estimator_advice, text
from moe.report.records import Records, Run, read_record, read_text

EMBEDDED_BYTES = 1_000_000
"""Data files above this size are linked but not carried inside the page."""


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


SECTIONS = (("evaluation", "Evaluation"), ("routing", "Specialisation"), ("latency", "Speed"))
"""Sections that show one kind of result for every experiment."""


def write_page(records: Path, runs: Path, tables: Path, figures: Path, out: Path) -> None:
    """Write the page to the file `out`: `records` is `runs.json`, `runs` the folder of runs, `tables` and `figures` the
    folders that `write_tables` and `write_figures` made of the same records.

    Raises `ConfigError` for a file that is missing or damaged.
    """
    book = Records(records, runs)
    remedy = f"snakemake --config scale={book.table.scale}"
    shown = read_record(list[TableEntry], tables / "index.json", remedy)
    drawn = read_record(list[FigureEntry], figures / "index.json", remedy)
    folder = out.parent
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    lead, verdict, sentence = claims.headline_claim(book)
    page = environment.get_template("page.html.j2").render(
        scale=book.table.scale,
        description=book.table.description,
        lead=lead,
        verdict=verdict,
        sentence=sentence,
        command=remedy,
        experiments=[_experiment(book, name) for name in book.table.experiments],
        sections=SECTIONS,
        tables=[table for table in shown if table.rows],
        figures=[figure.model_dump() | _images(figures, figure.file, folder, remedy) for figure in drawn],
        links={table.file: _link(tables / f"{table.file}.csv", folder) for table in shown},
        downloads=[_download(tables / f"{table.file}.csv", remedy) for table in shown],
        advice=estimator_advice.advice(book.estimators) if book.estimators else [],
        provenance=_provenance(book),
    )
    with complete_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _experiment(records: Records, name: str) -> dict[str, Any]:
    experiment = records.table.experiments[name]
    claim = claims.window_claim(records, name)
    axes = [
        axis.field or ", ".join(dict.fromkeys(f for arm in axis.arms.values() for f in arm))
        for axis in experiment.axes.values()
    ]
    return {
        "name": name,
        "title": experiment.title,
        "question": experiment.question,
        "prediction": experiment.prediction,
        "paper": experiment.paper,
        "fields": "; ".join(axes),
        "verdict": claim[0] if claim else None,
        "sentence": claim[1] if claim else "",
        "contrasts": claims.contrast_sentences(records, name),
    }


def _images(folder: Path, file: str, page: Path, remedy: str) -> dict[str, str]:
    svg = read_text(folder / f"{file}.svg", remedy).encode()
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return {"source": source, "svg": _link(folder / f"{file}.svg", page), "png": _link(folder / f"{file}.png", page)}


def _link(path: Path, folder: Path) -> str:
    """Relative link from a page in `folder`."""
    return quote(os.path.relpath(path, folder).replace(os.sep, "/"))


def _download(path: Path, remedy: str) -> dict[str, Any]:
    content = read_text(path, remedy).encode()
    small = len(content) <= EMBEDDED_BYTES
    source = "data:text/csv;charset=utf-8;base64," + base64.b64encode(content).decode() if small else ""
    return {"file": path.stem, "bytes": len(content), "source": source}


def _provenance(records: Records) -> dict[str, Any]:
    """What made the records: versions, devices, code, and one line for each run."""
    runs, code = records.runs, code_fingerprint()
    stamps = [stamp for run in runs.values() for stamp in (run.train, run.evaluation)]
    stamps += [stamp for stamp in (records.latency, records.estimators) if stamp]
    packages = sorted({package for stamp in stamps for package in stamp.versions})
    versions = {name: sorted({stamp.versions[name] for stamp in stamps if name in stamp.versions}) for name in packages}
    seconds = sum(run.seconds for run in runs.values())
    stale = sum(_is_stale(run, code) for run in runs.values())
    facts = {
        "code that drew this page": code_fingerprint(drawing=True),
        "code that made the records": ", ".join(sorted({stamp.code for stamp in stamps})),
        "stale runs": f"{stale} of {len(runs)}",
        "device": "; ".join(sorted({stamp.device for stamp in stamps})),
        "training, wall time of all runs": f"{seconds / 60:.1f} minutes",
        "training tokens of all runs": f"{sum(run.train.tokens for run in runs.values()):,}",
        **{name: ", ".join(found) for name, found in versions.items()},
    }
    arms: dict[str, list[str]] = {}
    for row in records.table.runs:
        arms.setdefault(row.run, []).append(f"{row.experiment}: {row.arm}")
    lines = [_run_line(name, run, "; ".join(arms[name]), code) for name, run in runs.items()]
    return {"facts": facts, "columns": list(lines[0]), "rows": [list(line.values()) for line in lines]}


def _run_line(name: str, run: Run, arms: str, code: str) -> dict[str, str]:
    train = run.train
    return {
        "run": name,
        "arm": arms,
        "seed": str(run.seed),
        "data": run.data,
        "config": train.config_hash,
        "code": train.code,
        "state": "stale" if _is_stale(run, code) else "current",
        "parameters (active)": f"{train.parameters:,} ({train.active_parameters:,})",
        "steps": str(train.steps),
        "tokens": f"{train.tokens:,}",
        "seconds": text.number(run.seconds, 1),
        "device": train.device,
        "weights sha256": train.weights_sha256[:12] or text.NOT_RUN,
    }


def _is_stale(run: Run, code: str) -> bool:
    """Whether other code than the present made a record of the run."""
    return any(stamp.code != code for stamp in (run.train, run.evaluation))
