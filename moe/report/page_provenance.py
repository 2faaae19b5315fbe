"""What made the records of a report: versions, devices, code, and one line for each run."""

from typing import Any

from moe.provenance import code_fingerprint
from moe.report import text
from moe.report.records import Records, Run


def provenance(records: Records) -> dict[str, Any]:
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
