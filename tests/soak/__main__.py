"""Disturb a pipeline at random moments until it is complete, and compare it with one that was left alone.

`python -m tests.soak --faults 50 --seed 1` prints one line per fault, a table of stages and faults, and how many files
are the same, byte for byte; the exit status is 1 if any is not, if something is left behind, or if a call does not end.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.soak.faults import FAULTS, Snakemake, kill_everything, processes, stage, stages, wait_for_end
from tests.soak.pipeline import OUTPUTS, Pipeline, differences

WEIGHTS = {
    "fetch": 4,
    "data": 5,
    "train": 12,
    "estimators": 5,
    "evaluate": 11,
    "latency": 4,
} | dict.fromkeys(("tables", "figures", "report"), 3)
"""Share of the faults that each stage gets."""
CALLS = 6
"""Calls that may be needed when nothing disturbs them: an earlier fault may have made a job fail in one."""
WRITING = 0.4
"""Share of the faults that wait until a file is being written; the others come at any moment of a stage."""
LIMIT_SECONDS = 600
"""What an undisturbed call, or one stage of it, may take to end or to begin on a slow machine that does more."""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="one run, up to evaluation")
    parser.add_argument("--folder", type=Path, help="where to work, kept afterwards (default: a temporary folder)")
    args = parser.parse_args()
    # A soak in the background ignores Ctrl-C, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        return soak(folder, faults=args.faults, seed=args.seed, short=args.short)
    finally:
        if not args.folder:
            shutil.rmtree(folder)


def soak(folder: Path, *, faults: int, seed: int, short: bool) -> int:
    """Run both pipelines in `folder`; 0 if they are the same in the end."""
    rng, began = random.Random(seed), time.monotonic()
    reference, disturbed = (Pipeline(folder.resolve() / name, short) for name in ("reference", "disturbed"))
    for pipeline in (reference, disturbed):
        pipeline.make()
    durations = undisturbed(reference)
    print(f"reference made in {time.monotonic() - began:.0f} s", flush=True)
    hits = Counter[tuple[str, str]]()
    try:
        disturb(disturbed, reference, durations, faults, rng, hits)
        finish(disturbed)
    except TimeoutError as error:
        kill_everything(None, disturbed.folder, rng)
        print(f"fault {hits.total()}: {error}", file=sys.stderr)
        return 1
    same, wrong = differences(reference, disturbed)
    wrong += disturbed.litter()
    print(f"{'':12}" + "".join(f"{fault:>22}" for fault in FAULTS))
    for name in OUTPUTS:
        print(f"{name:12}" + "".join(f"{hits[name, fault]:22}" for fault in FAULTS))
    survived = "not all survived" if wrong else "all survived"
    print(f"{hits.total()} faults, {survived}, {same} files identical, {time.monotonic() - began:.0f} s")
    for name in wrong:
        print(f"different, missing or left behind: {name}", file=sys.stderr)
    return bool(wrong)


def undisturbed(pipeline: Pipeline) -> dict[str, float]:
    """Run the pipeline to its end; the longest life of a process of each stage, in seconds."""
    snakemake = pipeline.start(pipeline.folder.with_suffix(".log"))
    lives: dict[str, float] = {}
    while snakemake.poll() is None:
        for process in processes(pipeline.folder):
            if name := stage(process):
                lives[name] = max(lives.get(name, 0.0), time.time() - process.create_time())
        time.sleep(0.2)
    if snakemake.returncode:
        raise RuntimeError(f"the undisturbed run failed: see {pipeline.folder.with_suffix('.log')}")
    return lives


def disturb(
    pipeline: Pipeline,
    reference: Pipeline,
    durations: dict[str, float],
    faults: int,
    rng: random.Random,
    hits: Counter[tuple[str, str]],
) -> None:
    """Inject `faults` faults, stage after stage in the order of the pipeline; count them in `hits`."""
    log = pipeline.folder.with_suffix(".log")
    snakemake, began = pipeline.start(log), time.monotonic()
    wanted = {name: weight for name, weight in WEIGHTS.items() if name in durations}
    plan = [name for name, weight in wanted.items() for _ in range(round(weight * faults / sum(wanted.values())))]
    plan = sorted([*plan, *rng.choices(list(wanted), k=faults)][:faults], key=list(OUTPUTS).index)
    for number, target in enumerate(plan, start=1):
        complete = len(reference.made(target))
        while not (
            moment := wait_for_moment(pipeline, snakemake, target, complete, rng.uniform(0, durations[target]), rng)
        ):
            kill_everything(snakemake, pipeline.folder, rng)
            pipeline.make_work(target, rng)
            durations[target] *= 0.8  # the machine may have been slower at first
            snakemake = pipeline.start(log)
        fault = min(FAULTS, key=lambda name: (hits[target, name], rng.random()))  # noqa: B023
        hits[target, fault] += 1
        FAULTS[fault](snakemake, pipeline.folder, rng)
        outcome = wait_for_end(fault, snakemake, pipeline.folder)
        print(
            f"#{number:<3} {time.monotonic() - began:6.1f} s  {fault:21} in {target:10} {moment}; {outcome}", flush=True
        )
        if snakemake.poll() is not None:
            snakemake = pipeline.start(log)
    snakemake.wait(LIMIT_SECONDS)


def wait_for_moment(
    pipeline: Pipeline, snakemake: Snakemake, target: str, complete: int, seconds: float, rng: random.Random
) -> str | None:
    """Wait until a stage works, then until it writes or so many seconds; what is alive, None if the stage is not.

    A stage that has made its `complete` outputs has no work left. Raises `TimeoutError` where it never begins.
    """
    started = time.monotonic()
    while not stages(pipeline.folder)[target]:
        if snakemake.poll() is not None or len(pipeline.made(target)) == complete:
            return None
        if time.monotonic() - started > LIMIT_SECONDS:
            raise TimeoutError(f"{target} has not begun after {LIMIT_SECONDS} s")
        time.sleep(0.1)
    writing = rng.random() < WRITING
    if not writing:
        time.sleep(seconds)
    while writing and stages(pipeline.folder)[target] and not pipeline.is_writing():
        time.sleep(0.02)
    alive = stages(pipeline.folder)
    said = ", ".join(f"{name} x{number}" for name, number in alive.items())
    return f"alive: {said}{', writing' * writing}" if alive[target] else None


def finish(pipeline: Pipeline) -> None:
    """Call until a call succeeds."""
    for call in range(1, CALLS + 1):
        snakemake = pipeline.start(pipeline.folder.with_suffix(".log"))
        if snakemake.wait(LIMIT_SECONDS) == 0:
            print(f"call {call} without a fault completes", flush=True)
            return
    raise TimeoutError(f"not complete after {CALLS} calls without a fault: see {pipeline.folder.with_suffix('.log')}")


if __name__ == "__main__":
    sys.exit(main())
