"""Which records stand behind a committed report: the small ones of every run, without weights and state."""

import json
import shutil
from pathlib import Path

from moe.provenance import complete_folder
from moe.settings import ConfigError

OF_RUN = (
    "config.json", "train.json", "train.jsonl", "speed.jsonl", "counts.parquet", "evaluation.json", "routing.parquet",
)  # fmt: skip
OPTIONAL = ("latency.json", "estimators.json")  # a scale may leave them out


def copy_records(table: Path, runs: Path, out: Path) -> None:
    """Copy `table`, the records beside it and those of its runs to `out`, in place of earlier ones.

    The runs lie in `out`/runs/<run>/ then. Raises `ConfigError` if a record of a run is missing.
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
            shutil.copyfile(source, temporary / target)
