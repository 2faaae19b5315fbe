"""Read `runs.json` and the records of its runs, checked once, so that tables and figures can rely on them.

A file that is missing or damaged raises `ConfigError`, which names it and the command that makes it again. Two files
beside `runs.json` may be absent: without `latency.json`, or for a run that it leaves out, times say "not run"; without
`estimators.json` nothing is said of estimators. So may `counts.parquet` of a run, which older code did not write:
nothing is said then of its time under expert parallelism.
"""

from collections.abc import Callable, Collection
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.lib
import pyarrow.parquet
from pydantic import TypeAdapter, ValidationError

from moe.config import RunConfig, window_sequences
from moe.report.measure_names import MEASURES
from moe.report.record_types import (
    CurveLine,
    EstimatorsRecord,
    EvaluationRecord,
    LatencyRecord,
    RunsTable,
    SpeedLine,
    Timing,
    TrainRecord,
)
from moe.settings import ConfigError

ROUTING_COLUMNS = ["domain", "layer", "expert", "tokens", "top_k_score_sum"]
COUNTS_COLUMNS = ["step", "layer", "position", "domain", "counts"]


class Routing:
    """Routing of the held-out text: arrays over domains, layers and experts (D, L, E), and tokens of each domain."""

    def __init__(self, table: pd.DataFrame, top_k: int) -> None:
        self.domains = list(dict.fromkeys(table["domain"]))
        self.top_k = top_k
        size = len(self.domains), table["layer"].nunique(), table["expert"].nunique()
        table = table.assign(domain=table["domain"].map({name: d for d, name in enumerate(self.domains)}))
        table = table.sort_values(["domain", "layer", "expert"])
        self.counts_DLE = table["tokens"].to_numpy(dtype=np.float64).reshape(size)
        self.scores_DLE = table["top_k_score_sum"].to_numpy(dtype=np.float64).reshape(size)
        # Every token makes top_k selections in every layer.
        self.tokens_D = self.counts_DLE[:, 0].sum(axis=-1) / top_k


class Counts:
    """Selections while a run trained: arrays over recorded steps, layers, sequences and experts (S, L, B, E), and the
    domain of each sequence."""

    def __init__(self, table: pd.DataFrame) -> None:
        table = table.sort_values(["step", "layer", "position"])
        self.steps = sorted(set(table["step"].tolist()))
        size = len(self.steps), table["layer"].nunique(), table["position"].nunique()
        self.counts_SLBE = np.stack(table["counts"].tolist()).astype(np.int64).reshape(*size, -1)
        self.domains_SB = table["domain"].to_numpy(dtype=object).reshape(size)[:, 0]


class Run:
    """One run of the table and its records: config, train, curve and speed (the logged steps), evaluation, routing,
    timing."""

    def __init__(self, folder: Path, seed: int, data: str, timing: Timing | None, remedy: str) -> None:
        self.seed, self.data = seed, data
        self._folder, self._remedy = folder, remedy
        self.config: RunConfig = read_record(RunConfig, folder / "config.json", remedy)
        self.train: TrainRecord = read_record(TrainRecord, folder / "train.json", remedy)
        self.curve: list[CurveLine] = _lines(CurveLine, folder / "train.jsonl", remedy)
        self.speed: list[SpeedLine] = _lines(SpeedLine, folder / "speed.jsonl", remedy)
        self.evaluation: EvaluationRecord = read_record(EvaluationRecord, folder / "evaluation.json", remedy)
        self.routing: Routing = _parquet(
            lambda table: Routing(table, self.config.model.top_k), folder / "routing.parquet", ROUTING_COLUMNS, remedy
        )
        self.timing = timing

    @cached_property
    def counts(self) -> Counts | None:
        """What `counts.parquet` holds, or None where the run has none."""
        path = self._folder / "counts.parquet"
        return _parquet(Counts, path, COUNTS_COLUMNS, self._remedy) if path.exists() else None

    @property
    def windows(self) -> list[int]:
        """Window of each balance term, in sequences (the paper's Balance BSZ)."""
        return [window_sequences(term, self.config.train) for term in self.config.balance.terms]

    @property
    def seconds(self) -> float:
        """Wall time of the training steps: each line of `speed` tells that of the steps since the line before."""
        starts = [0, *(line.step for line in self.speed[:-1])]
        tokens_per_step = self.train.tokens / self.train.steps
        return sum(
            (line.step - start) * tokens_per_step / line.tokens_per_second
            for start, line in zip(starts, self.speed, strict=True)
        )


class Records:
    """A runs table with the records of its runs; runs that experiments share are read once."""

    def __init__(self, table: Path, runs: Path) -> None:
        remedy = "snakemake --config scale=" + table.parent.name
        self.path = table
        self.table: RunsTable = read_record(RunsTable, table, remedy)
        remedy = f"snakemake --config scale={self.table.scale}"
        folder = table.parent
        self.latency: LatencyRecord | None = _optional(LatencyRecord, folder / "latency.json", remedy)
        self.estimators: EstimatorsRecord | None = _optional(EstimatorsRecord, folder / "estimators.json", remedy)
        timings = self.latency.runs if self.latency else {}
        rows = {row.run: row for row in self.table.runs}
        self.runs: dict[str, Run] = {
            name: Run(runs / name, row.seed, row.data, timings.get(name), remedy) for name, row in rows.items()
        }
        for name, experiment in self.table.experiments.items():
            known = self.arms(name)
            if not known:
                raise ConfigError(f"{table}: experiment '{name}' has no run; make the table again with: {remedy}")
            for kind, arms in experiment.compared().items():
                for arm in set(arms) - set(known):
                    named = f"{table}: a {kind} of '{name}' names the arm '{arm}'"
                    raise ConfigError(f"{named}; arms are {', '.join(known)}")
            for measure in {item.measure for item in experiment.expect} - set(MEASURES):
                raise ConfigError(f"{table}: an expectation of '{name}' names the unknown measure '{measure}'")

    def arms(self, experiment: str) -> dict[str, dict[int, Run]]:
        """Arms of an experiment in the order of the table: label -> seed -> run."""
        arms: dict[str, dict[int, Run]] = {}
        for row in self.table.runs:
            if row.experiment == experiment:
                arms.setdefault(row.arm, {})[row.seed] = self.runs[row.run]
        return arms

    def runs_of(self, experiment: str, arms: Collection[str] = ()) -> list[tuple[str, int, Run]]:
        """Arm, seed and run of every run of an experiment, arm by arm; of `arms` alone, where some are named."""
        chosen = {arm: seeds for arm, seeds in self.arms(experiment).items() if not arms or arm in arms}
        return [(arm, seed, run) for arm, seeds in chosen.items() for seed, run in sorted(seeds.items())]

    def run(self, experiment: str, arm: str) -> Run:
        """The run of an arm at its first seed, whose settings all its seeds share."""
        return next(iter(self.arms(experiment)[arm].values()))

    def labels(self, experiment: str) -> dict[str, dict[str, str]]:
        """Arm -> axis -> label."""
        return {row.arm: row.labels for row in self.table.runs if row.experiment == experiment}

    def contrasts(self, experiment: str) -> list[tuple[str, str]]:
        """The experiment's contrasts; without any, every arm against the first."""
        first, *others = self.arms(experiment)
        return list(self.table.experiments[experiment].contrasts) or [(arm, first) for arm in others]

    def reference(self, experiment: str) -> str:
        """The arm that others are compared with: the second of the first contrast."""
        contrasts = self.contrasts(experiment)
        return contrasts[0][1] if contrasts else next(iter(self.arms(experiment)))

    def references(self, experiment: str) -> dict[str, str]:
        """Arm -> the arm that it is compared with: that with the labels of the reference on the axes that are compared,
        and with its own on the others, where the data, and so the loss, may be another."""
        labels, compared = self.labels(experiment), self._compared_axes(experiment)
        arms = {frozenset(own.items()): arm for arm, own in labels.items()}
        same = {axis: labels[self.reference(experiment)][axis] for axis in compared}
        return {arm: arms[frozenset((own | same).items())] for arm, own in labels.items()}

    def reference_name(self, experiment: str) -> str:
        """What all arms are compared with, in words: “1 sequence”, or with a second axis “1 sequence” at the same
        domains."""
        labels, compared = self.labels(experiment)[self.reference(experiment)], self._compared_axes(experiment)
        others = [axis for axis in labels if axis not in compared]
        name = " / ".join(label for axis, label in labels.items() if axis in compared)
        return f"“{name}”" + f" at the same {' and '.join(others)}" * (len(others) > 0)

    def _compared_axes(self, experiment: str) -> list[str]:
        """The axes in which the arms of the first contrast differ; all of them where no contrast is named."""
        labels, contrasts = self.labels(experiment), self.table.experiments[experiment].contrasts
        if not contrasts:
            return list(labels[self.reference(experiment)])
        first, second = (labels[arm] for arm in contrasts[0])
        return [axis for axis in second if first[axis] != second[axis]]


def read_text(path: Path, remedy: str) -> str:
    """The text of a file; `remedy` is the command that makes the file, for the `ConfigError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: missing; make it with: {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error), remedy) from None


def read_record(schema: Any, path: Path, remedy: str) -> Any:
    """A JSON file checked against a type; `ConfigError` with the `remedy` if it is missing or damaged."""
    return _validated(schema, read_text(path, remedy), path, remedy)


def _optional(schema: Any, path: Path, remedy: str) -> Any:
    return read_record(schema, path, remedy) if path.exists() else None


def _lines(schema: Any, path: Path, remedy: str) -> list[Any]:
    lines = read_text(path, remedy).splitlines()
    if not lines:
        raise _damaged(path, "it is empty", remedy)
    return [_validated(schema, line, path, remedy) for line in lines]


def _parquet(make: Callable[[pd.DataFrame], Any], path: Path, columns: list[str], remedy: str) -> Any:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return make(file.read(columns).to_pandas())
    except FileNotFoundError:
        raise ConfigError(f"{path}: missing; make it with: {remedy}") from None
    except (OSError, pyarrow.lib.ArrowException, KeyError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}", remedy) from None


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    """The validator of a type: making one takes longer than to check a line with it."""
    return TypeAdapter(schema)


def _validated(schema: Any, text: str, path: Path, remedy: str) -> Any:
    try:
        return _adapter(schema).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{where}: {first['msg']}" if where else first["msg"], remedy) from None


def _damaged(path: Path, reason: str, remedy: str) -> ConfigError:
    return ConfigError(f"{path}: damaged ({' '.join(reason.split())}); delete it and run: {remedy}")
