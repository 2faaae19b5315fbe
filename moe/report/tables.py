"""All tables of a scale, written as files.

`write_tables` writes `<experiment>-<table>.csv` and `.md`, `estimators.csv` and `.md` with their data where
they were measured, `paper.csv` and `.md`, and `index.json`, which the page is made from.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from moe.provenance import complete_folder, write_json
from moe.report import claims, measures, outcomes, paper, text
from moe.report.arm_settings import variable_table
from moe.report.comparison_tables import contrast_table, headline_table, interaction_table
from moe.report.estimator_advice import advice
from moe.report.estimator_table import estimator_tables
from moe.report.measurement_tables import downstream_table, latency_table, layer_table, perplexity_table
from moe.report.outcome_tables import prediction_table, recovery_table
from moe.report.paper_effects import effect_table
from moe.report.records import Records
from moe.report.specialisation_measures import drop_frame
from moe.report.specialisation_table import specialisation_table
from moe.report.straggler_tables import scale_tables, straggler_tables
from moe.report.table import Table

DATA: dict[str, Callable[[Records, str], pd.DataFrame]] = {
    "runs": measures.run_frame,
    "domains": measures.domain_frame,
    "curves": measures.curve_frame,
    "routing": measures.layer_frame,
    "scores": measures.score_frame,
    "selection": measures.selection_frame,
    "drop": drop_frame,
    "tasks": measures.task_frame,
    "timing": measures.latency_frame,
    "steps": measures.step_frame,
}
"""Data behind the figures, one row per run and more: files that the page links to without showing them."""
SHOWN: tuple[Callable[[Records, str], Table | None], ...] = (
    headline_table, recovery_table, variable_table, contrast_table, interaction_table, perplexity_table,
    downstream_table, layer_table, specialisation_table, latency_table,
)  # fmt: skip
"""Tables of every experiment; None where one has nothing to say."""


def all_tables(records: Records) -> list[Table]:
    """The predictions, every table and data file of every experiment, those of the estimators, the paper's values."""
    found = outcomes.outcomes(records)
    tables = [prediction_table(records, "", found)]
    for experiment in records.table.experiments:
        tables += [prediction_table(records, experiment, found), *(make(records, experiment) for make in SHOWN)]
        for name, make in DATA.items():
            frame = make(records, experiment).assign(status="measured")
            tables.append(
                Table(name, "data", f"Data: {name}", (make.__doc__ or "").split("\n")[0], frame, None, experiment)
            )
        tables += straggler_tables(records, experiment)
    made = [table for table in tables if table is not None]
    return [*made, *estimator_tables(records), *scale_tables(records), paper_table(), effect_table()]


def paper_table() -> Table:
    """The paper's own values."""
    frame = paper.quoted()
    keys = list(paper.COLUMNS[:5])
    wide = frame.pivot_table("value", keys, "measure", sort=False).rename_axis(columns=None)
    wide = wide.reindex(pd.MultiIndex.from_frame(frame[keys].drop_duplicates()))
    for measure in wide.columns:
        digits = 3 if measure == "Avg PPL" else 2
        wide[measure] = ["–" if math.isnan(value) else text.number(value, digits) for value in wide[measure]]
    shown = wide.reset_index().assign(status="quoted")
    caption = (
        "Values printed in arXiv:2501.11873, quoted: one run each, without error bars; – is not printed there. "
        "Nothing here was measured by this suite."
    )
    return Table("paper", "paper", "The paper's own values", caption, frame, shown)


def write_tables(records: Path, runs: Path, out: Path) -> None:
    """Write every table below `out`, which is replaced as a whole; `records` is `runs.json`, `runs` the folder of runs.

    Raises `ConfigError` for a record that is missing or damaged.
    """
    tables = all_tables(Records(records, runs))
    with complete_folder(out) as folder:
        for table in tables:
            # Digits beyond these differ between processors; the format is not applied in columns that have words too.
            frame = table.frame.map(lambda cell: float(f"{cell:.7g}") if isinstance(cell, float) else cell)
            frame.to_csv(folder / f"{table.file}.csv", index=False, float_format="%.7g", na_rep=text.NOT_RUN)
            if table.display is not None:
                (folder / f"{table.file}.md").write_text(markdown(table), encoding="utf-8")
        write_json(folder / "index.json", [_entry(table) for table in tables])


def markdown(table: Table) -> str:
    """Title, table and caption as GitHub Markdown."""
    assert table.display is not None
    lines = [
        list(table.display.columns),
        ["---"] * len(table.display.columns),
        *table.display.astype(str).values.tolist(),
    ]
    rows = ["| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines]
    title = f"{table.experiment}: {table.title}" if table.experiment else table.title
    return f"### {_cell(title)}\n\n" + "\n".join(rows) + f"\n\n{_cell(table.caption)}\n"


def headline_text(records: Path, runs: Path) -> str:
    """The headline sentence, the headline tables and the advice on estimators as plain text for a terminal.

    `records` is `runs.json`, `runs` the folder of runs; raises `ConfigError` for a record that is missing or damaged.
    """
    book = Records(records, runs)
    found = outcomes.outcomes(book)
    parts = [claims.headline_claim(book, found)[2]]
    if found:
        lines = [f"  {item.verdict}: {item.expectation.claim} ({item.experiment})" for item in found]
        parts.append("\n".join([outcomes.count_sentence(found), *lines]))
    for name, experiment in book.table.experiments.items():
        table = headline_table(book, name).display
        assert table is not None
        columns = [column for column in table.columns if column not in ("Balance BSZ (sequences)", "status")]
        parts.append(f"{experiment.title}\n{table[columns].to_string(index=False)}")
    if book.estimators:
        parts.append("\n".join(["Estimators of f", *advice(book.estimators)]))
    return "\n\n".join(parts)


def _entry(table: Table) -> dict[str, Any]:
    shown = table.display
    head = {"name": table.name, "file": table.file, "experiment": table.experiment, "section": table.section}
    content = {"columns": list(shown.columns), "rows": shown.astype(str).values.tolist()} if shown is not None else {}
    return head | {"title": table.title, "caption": table.caption} | content


def _cell(value: str) -> str:
    """Text that Markdown shows as it is, in one line: no tag, entity, link or picture, and no cell that ends early."""
    for mark, shown in (("\\", "\\\\"), ("|", "\\|"), ("&", "&amp;"), ("<", "&lt;"), ("](", "]\\(")):
        value = value.replace(mark, shown)
    return " ".join(value.splitlines())
