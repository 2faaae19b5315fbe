"""What made the records of a report: versions, devices, code, and one line for each run."""

from typing import Any

from moe.provenance import code_fingerprint
from moe.report import text
from moe.report.records import Records, Run

EQUAL_CODE = {
    "2f035265565a": "numpy's products, asked for by the model, had as many threads as torch; all runs have one",
}
"""Fingerprints of earlier code that makes the same records as the present, and what is other in it. Before it is
entered, runs of every experiment have come out equal to the last bit (docs/lab-notes.md); the next change that moves a
record takes it away."""


def provenance(records: Records) -> dict[str, Any]:
    """What made the records: versions, devices, code, and one line for each run."""
    runs, code = records.runs, code_fingerprint()
    stamps = [stamp for run in runs.values() for stamp in (run.train, run.evaluation)]
    stamps += [stamp for stamp in (records.latency, records.estimators) if stamp]
    packages = sorted({package for stamp in stamps for package in stamp.versions})
    versions = {name: sorted({stamp.versions[name] for stamp in stamps if name in stamp.versions}) for name in packages}
    seconds = sum(run.seconds for run in runs.values())
    stale = sum(_state(run, code) == "stale" for run in runs.values())
    made = {stamp.code for stamp in stamps}
    equal = [f"{earlier} ({other})" for earlier, other in EQUAL_CODE.items() if earlier in made]
    facts = {
        "code that drew this page": code_fingerprint(drawing=True),
        "code that made the records": ", ".join(sorted(made)),
        "earlier code that makes the same records": ", ".join(equal) or "none",
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
        "state": _state(run, code),
        "parameters (active)": f"{train.parameters:,} ({train.active_parameters:,})",
        "steps": str(train.steps),
        "tokens": f"{train.tokens:,}",
        "seconds": text.number(run.seconds, 1),
        "device": train.device,
        "weights sha256": train.weights_sha256[:12] or text.NOT_RUN,
    }


def _state(run: Run, code: str) -> str:
    """`current` where the present code made the run's records, `equal` where it would make the same, else `stale`."""
    made = {run.train.code, run.evaluation.code}
    return "current" if made == {code} else "equal" if made <= {code, *EQUAL_CODE} else "stale"
