"""Which records stand behind a committed report: the small ones of every run, without weights and state.

All are copied as they are, but for what `LEFT_OUT` names; results/runs keeps the whole.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from moe.provenance import complete_folder, write_json
from moe.settings import ConfigError

OF_RUN = (
    "config.json", "train.json", "train.jsonl", "speed.jsonl", "counts.parquet", "evaluation.json", "routing.parquet",
)  # fmt: skip
OPTIONAL = ("latency.json", "estimators.json")  # a scale may leave them out
# The settings of every task are two thirds of the record and the same in every run. No table, figure or page reads
# them, and the versions, shots and hashes of the tasks, which are kept, tell which settings they were.
LEFT_OUT = "configs"
"""Key of lm-eval's part of `evaluation.json` that is not kept."""


def copy_records(table: Path, runs: Path, out: Path) -> None:
    """Copy `table`, the records beside it and those of its runs to `out`, in place of earlier ones.

    The runs lie in `out`/runs/<run>/ then. Raises `ConfigError` if a record of a run is missing or an
    evaluation is damaged.
    """
    if not table.is_file():
        raise ConfigError(f"{table}: missing; run the scale first")
    names = {row["run"] for row in json.loads(table.read_text(encoding="utf-8"))["runs"]}
    of_scale = ["runs.json", *(file for file in OPTIONAL if (table.parent / file).exists())]
    copies = {table.parent / file: Path(file) for file in of_scale}
    copies |= {runs / name / file: Path("runs", name, file) for name in sorted(names) for file in OF_RUN}
    with complete_folder(out) as temporary:
        for source, target in copies.items():
            if not source.is_file():
                raise ConfigError(f"{source}: missing; run the scale first")
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            if source.name == "evaluation.json":
                write_json(temporary / target, _evaluation(source))
            else:
                shutil.copyfile(source, temporary / target)


def _evaluation(path: Path) -> dict[str, Any]:
    """The record of an evaluation without `LEFT_OUT`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path}: not valid JSON; delete it and run the scale again") from None
    tasks = record.get("lm_eval") or {}  # null without tasks
    tasks.pop(LEFT_OUT, None)
    return record
