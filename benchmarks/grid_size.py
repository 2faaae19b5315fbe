"""How long do planning and reporting take on large grids? Neither may cost a minute.

`planning`: `snakemake -n` of a scale that asks for so many runs. `report`: tables, figures, page and headline of so
many runs at the size of the cpu scale, from synthetic records. Each at two sizes: the slope is what one more run costs.
"""

import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from moe.scale import Experiment
from tests.report.synthetic import write_records
from tests.workflow.project import ROOT, command, copy_project, environment, jobs

TARGET_SECONDS = 60
SEEDS = list(range(10))
PLANNED = (1_000, 10_000)
REPORTED = (100, 1_000)


def measure() -> dict[str, Any]:
    """Wall and CPU seconds of every command at every number of runs."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project = copy_project(folder / "project")
        planning = [_plan(project, runs) for runs in PLANNED]
        report = [_report(folder / str(runs), runs) for runs in REPORTED]
    return {"target_seconds": TARGET_SECONDS, "planning": planning, "report": report}


def text(record: dict[str, Any]) -> str:
    """Seconds beside the target, and milliseconds of one more run."""
    lines = [f"{'grid size':<28}{'runs':>7}{'wall':>10}{'CPU':>10}    target"]
    for name, part in (("snakemake -n", "planning"), ("tables, figures, report", "report")):
        for size in record[part]:
            steps = size["steps"].values()
            wall, cpu = (sum(step[key] for step in steps) for key in ("seconds", "cpu_seconds"))
            last = f"    < {record['target_seconds']} s" if size is record[part][-1] else ""
            lines.append(f"{name:<28}{size['runs']:>7,}{wall:>8.1f} s{cpu:>8.1f} s{last}")
        lines.append(f"{'  one more run':<28}{'':>7}{_slope(record[part]):>7.1f} ms")
    return "\n".join(lines)


def _slope(sizes: list[dict[str, Any]]) -> float:
    """Milliseconds of wall time for one more run."""
    small, large = (sum(step["seconds"] for step in size["steps"].values()) for size in sizes)
    return 1e3 * (large - small) / (sizes[1]["runs"] - sizes[0]["runs"])


def _plan(project: Path, runs: int) -> dict[str, Any]:
    """Plan a grid of two axes at the cpu scale."""
    rates = {"field": "train.learning_rate", "values": [i / 1e5 for i in range(1, runs // (10 * len(SEEDS)) + 1)]}
    weights = {"field": "balance.terms.0.weight", "values": [i / 1e3 for i in range(1, 11)]}
    axes = {"weight": weights, "rate": rates}
    experiment = {"title": "Grid", "question": "none", "prediction": "none", "axes": axes}
    scale = yaml.safe_load((project / "config" / "scales" / "cpu.yaml").read_text())
    scale |= {"experiments": ["grid"], "seeds": SEEDS}
    for name, content in (("scales", scale), ("experiments", experiment)):
        (project / "config" / name / "grid.yaml").write_text(yaml.safe_dump(content))
    done, step = _timed(project, "snakemake", "-n", "--config", "scale=grid")
    assert jobs(done)["train"] == runs
    return {"runs": runs, "steps": {"plan": step}}


def _report(folder: Path, runs: int) -> dict[str, Any]:
    """Draw the report of an experiment with one axis."""
    weights = [i / 1e3 for i in range(1, runs // len(SEEDS) + 1)]
    arms = {str(weight): {"balance.terms": [{"weight": weight}]} for weight in weights}
    experiment = {"title": "Grid", "question": "none", "prediction": "none", "axes": {"weight": {"arms": arms}}}
    write_records(folder, {"grid": Experiment.model_validate(experiment)}, seeds=tuple(SEEDS))
    tables, figures = ("--tables", folder / "tables"), ("--figures", folder / "figures")
    stages = {
        "tables": ("--out", tables[1]),
        "figures": ("--out", figures[1]),
        "report": (*tables, *figures, "--out", folder / "index.html"),
        "headline": (),
    }
    records = ("--records", folder / "runs.json", "--runs", folder / "runs")
    steps = {stage: _timed(ROOT, "moe", stage, *map(str, records + rest))[1] for stage, rest in stages.items()}
    return {"runs": runs, "steps": steps}


def _timed(folder: Path, *args: str) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """Run a module to its end: what it printed, and its wall and CPU seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command(*args), cwd=folder, env=environment(), capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip()}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done, {"seconds": seconds, "cpu_seconds": cpu}
