"""Where does the time of a finished scale go? Training steps against all else, and what one more run adds.

`python -m benchmarks.pipeline --scale cpu [--cores 2]` in the folder of a finished `make reproduce`. Jobs' times are
those that Snakemake keeps in `.snakemake/metadata`; training steps are counted from `speed.jsonl`: the median seconds
of a step times their number, so that start-up, compilation and checkpoints are not among them, nor the steps that a run
takes over from its parent. Time in which a core had nothing to do is part of "all else".
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from moe.branches import branch
from moe.config import RunConfig
from moe.provenance import device_name, stamp, write_json
from moe.settings import read_json
from moe.sweep import run_name

TARGET = 0.20
OF_RUN = ("run_config", "train", "evaluate")  # rules that every run adds a job of


def measure(folder: Path, scale: str, cores: int) -> dict[str, Any]:
    """Seconds per rule, of training steps and of the whole, for the runs of a scale."""
    table = json.loads((folder / "results" / scale / "runs.json").read_text())
    runs = list(dict.fromkeys(row["run"] for row in table["runs"]))
    jobs: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)  # rule -> log -> start and end
    for path in (folder / ".snakemake" / "metadata").rglob("*"):
        if path.is_file():
            job = json.loads(path.read_text())
            if job.get("endtime") and job.get("starttime"):
                # All outputs of one job have one log.
                jobs[job["rule"]][str(job["log"])] = (job["starttime"], job["endtime"])
    seconds = {rule: sum(end - start for start, end in found.values()) for rule, found in jobs.items()}
    starts, ends = zip(*(times for found in jobs.values() for times in found.values()), strict=True)
    wall = max(ends) - min(starts)
    steps = sum(_training_seconds(folder / "results" / "runs" / run, runs) for run in runs)
    per_run = sum(seconds[rule] for rule in OF_RUN) / len(runs)
    return {
        "scale": scale,
        "cores": cores,
        "runs": len(runs),
        "wall_seconds": wall,
        "training_step_seconds": steps,
        "share_of_all_else": 1 - steps / cores / wall,
        "seconds_per_added_run": per_run,
        "seconds_per_rule": dict(sorted(seconds.items(), key=lambda item: -item[1])),
        "jobs_per_rule": {rule: len(found) for rule, found in jobs.items()},
    }


def text(record: dict[str, Any]) -> str:
    """A table of the rules, and the shares beside their target."""
    where = f"scale {record['scale']} on {record['cores']} cores"
    lines = [f"{record['runs']} runs of {where}, {record['wall_seconds']:.0f} s"]
    for rule, seconds in record["seconds_per_rule"].items():
        jobs = record["jobs_per_rule"][rule]
        lines.append(f"  {rule:14} {jobs:4} jobs {seconds:8.1f} s {seconds / jobs:8.2f} s each")
    steps, runs = record["training_step_seconds"], record["runs"]
    lines += [
        f"  training steps {steps:.0f} s of one core: all else is {record['share_of_all_else']:.0%} of the wall time"
        f"   target at most {TARGET:.0%}",
        f"  one more run   {record['seconds_per_added_run']:.1f} s of one core, {steps / runs:.1f} s of them steps",
    ]
    return "\n".join(lines)


def _training_seconds(folder: Path, runs: list[str]) -> float:
    config = read_json(RunConfig, folder / "config.json")
    parent = branch(config)
    taken_over = parent[1] if parent and run_name(parent[0]) in runs else 0
    lines = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    tokens = config.train.batch_sequences * config.data.sequence_length
    return (config.train.steps - taken_over) * tokens / median(line["tokens_per_second"] for line in lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/pipeline.json"))
    args = parser.parse_args()
    record = measure(Path.cwd(), args.scale, args.cores)
    head = stamp("moe-benchmark/1", device=device_name(torch.device("cpu")), part="pipeline")
    write_json(args.out, head | {"measured": record})
    print(text(record))


if __name__ == "__main__":
    main()
