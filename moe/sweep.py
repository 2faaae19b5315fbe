"""Which runs an experiment needs: a scale times experiments times seeds, as a plan made before the first job.

Everything here is a pure function of the two YAML files. Runs are named by what they resolve to, so arms of
different experiments that need the same run share it, and a new arm adds runs without renaming any.
"""

import copy
import difflib
import hashlib
import itertools
import json
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moe.branches import branch
from moe.config import (
    BalanceTerm,
    DataConfig,
    PipSource,
    RunConfig,
    TrainConfig,
    check_capacity,
    check_split,
    window_sequences,
)
from moe.data.sources import corpus
from moe.lm_eval_tasks.official import check_names
from moe.report.measure_names import MEASURES
from moe.scale import Experiment, Scale, check_estimators, check_latency
from moe.settings import ConfigError, digest, parse, read_yaml

ESTIMATOR_SLUGS = {"exact": "", "prefix": "p", "previous": "last", "ema": "ema"}
MOST_RUNS = 20_000
"""Most runs of one experiment: a few axes too many ask for billions."""
LABEL_CHARACTERS = 200
"""Longest name of an arm."""
PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?) ?%")
SECTIONS = ("model", "data", "train", "balance")  # what a scale and a run share, and an axis may change


@dataclass(frozen=True)
class Row:
    """One arm of one experiment at one seed; several rows may point at the same run."""

    run: str
    experiment: str
    arm: str
    labels: dict[str, str]
    seed: int
    data: str


@dataclass(frozen=True)
class Plan:
    """Everything that a scale asks for."""

    name: str
    scale: Scale
    experiments: dict[str, Experiment]
    rows: tuple[Row, ...]
    configs: dict[str, RunConfig]
    """Resolved config of every run, by name."""

    @cached_property
    def data_of(self) -> dict[str, str]:
        """Id of the data set of every run, by the run's name."""
        return {row.run: row.data for row in self.rows}

    @cached_property
    def data(self) -> dict[str, DataConfig]:
        """Every data set that the runs need, by id."""
        runs = {data: run for run, data in self.data_of.items()}
        return {data: self.configs[run].data.packed() for data, run in runs.items()}

    @cached_property
    def branches(self) -> dict[str, tuple[str, int]]:
        """Of every run that starts from another run of the plan: that run, and after how many steps."""
        found = {run: (run_name(parent[0]), parent[1]) for run, c in self.configs.items() if (parent := branch(c))}
        return {run: pair for run, pair in found.items() if pair[0] in self.configs}

    @cached_property
    def kept(self) -> dict[str, list[int]]:
        """Steps after which a run leaves its state for others."""
        steps: dict[str, set[int]] = {}
        for parent, step in self.branches.values():
            steps.setdefault(parent, set()).add(step)
        return {run: sorted(found) for run, found in steps.items()}

    @cached_property
    def timed(self) -> list[str]:
        """Runs whose latency is measured: at the first seed every arm, or as many as `latency.arms` allows; none where
        `latency` is null."""
        if not self.scale.latency:
            return []
        runs = []
        for name, experiment in self.experiments.items():
            arms = {row.arm: row.run for row in self._first_seed if row.experiment == name}
            # Without contrasts the first arm is the reference; of a contrast the second is.
            first = itertools.chain.from_iterable((b, a) for a, b in experiment.contrasts)
            chosen = set(itertools.islice(dict.fromkeys([*first, *arms]), self.scale.latency.arms))
            runs += [run for arm, run in arms.items() if arm in chosen]
        return list(dict.fromkeys(runs))

    @cached_property
    def _first_seed(self) -> list[Row]:
        return [row for row in self.rows if row.seed == self.scale.seeds[0]]

    @cached_property
    def widest(self) -> str:
        """The run that estimators are compared on: at the first seed, the first with the widest window."""
        windows = {
            row.run: max((int(term.window) for term in self.configs[row.run].balance.terms), default=0)
            for row in self._first_seed
        }
        return max(windows, key=lambda run: windows[run])

    def record(self) -> dict[str, Any]:
        """Content of `results/<scale>/runs.json`."""
        return {
            "schema": "moe-runs/1",
            "scale": self.name,
            "description": self.scale.description,
            "settings": self.scale.model_dump(mode="json"),
            "experiments": {name: item.model_dump(mode="json") for name, item in self.experiments.items()},
            "runs": [vars(row) for row in self.rows],
        }

    def digest(self) -> str:
        """Short hash of the record: it changes when an arm, a seed, a setting or a text of the report does."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:12]


def load_scale(path: Path) -> Scale:
    """Read `config/scales/<name>.yaml`; raises `ConfigError` that names the nearest file where there is none."""
    return read_yaml(Scale, _existing(path, "scale"))


def load_experiment(path: Path) -> Experiment:
    """Read `config/experiments/<name>.yaml`; raises `ConfigError` that names the nearest file where there is none."""
    return read_yaml(Experiment, _existing(path, "experiment"))


def load_plan(name: str, folder: Path = Path("config"), *, only: str = "") -> Plan:
    """Plan of the scale `name` with the experiments that it lists, or those of them that `only` names, separated by
    commas."""
    scale = load_scale(folder / "scales" / f"{name}.yaml")
    if only:
        chosen = [item.strip() for item in only.split(",")]
        for item in chosen:
            if item not in scale.experiments:
                known = list(scale.experiments)
                raise ConfigError(f"scale {name} lists no experiment '{item}'; {_hint(item, known)}")
        scale = scale.model_copy(update={"experiments": tuple(i for i in scale.experiments if i in chosen)})
    names = dict.fromkeys(scale.experiments)
    experiments = {item: load_experiment(folder / "experiments" / f"{item}.yaml") for item in names}
    return resolve(name, scale, experiments)


def resolve(name: str, scale: Scale, experiments: dict[str, Experiment]) -> Plan:
    """Every run of `scale` times `experiments`, each validated, names of corpora and of the wheel's tasks included.

    Raises `ConfigError` for the first mistake.
    """
    if len(set(scale.seeds)) < len(scale.seeds):
        raise ConfigError(f"scale {name}: every seed may be listed once, got {list(scale.seeds)}")
    if len(experiments) < len(scale.experiments):
        raise ConfigError(f"scale {name}: every experiment may be listed once, got {list(scale.experiments)}")
    if scale.evaluation.source == "pip":  # the hub's tasks take seconds to list: `fetch` checks them
        check_names(scale.evaluation.tasks, "pip")
    rows, configs = [], {}
    for title, experiment in experiments.items():
        size = math.prod(len(axis.arms or axis.values) for axis in experiment.axes.values()) * len(scale.seeds)
        if size > MOST_RUNS:
            raise ConfigError(
                f"experiment {title}: its arms and the seeds of scale {name} make {size:,} runs, and {MOST_RUNS:,} are "
                "the most: split it, or shorten an axis"
            )
        arms = expand(title, experiment)
        owner: dict[str, str] = {}
        for arm, labels, overrides in arms:
            # A scale's seeds are valid for every arm, so each arm is validated once.
            first = configure(scale, overrides, seed=scale.seeds[0], where=f"experiment {title}, arm '{arm}'")
            if scale.latency:
                check_latency(first, scale.latency)
            if scale.estimators:
                check_estimators(first.train, scale.estimators)
            data = digest(first.data.packed())
            for seed in scale.seeds:
                config = first.model_copy(update={"seed": seed})
                run = run_name(config)
                if owner.setdefault(run, arm) != arm:
                    raise ConfigError(
                        f"experiment {title}: arms '{owner[run]}' and '{arm}' resolve to the same run; "
                        "remove one of them"
                    )
                configs[run] = config
                rows.append(Row(run, title, arm, labels, seed, data))
    return Plan(name, scale, experiments, tuple(rows), configs)


def expand(title: str, experiment: Experiment) -> list[tuple[str, dict[str, str], list[tuple[str, Any]]]]:
    """Arms of an experiment in order: (arm, label per axis, dotted fields to set).

    Raises `ConfigError` for arms that cannot be told apart by name, for a contrast, an expectation or a recovery of
    arms that do not exist, and for an expectation in a measure that does not.
    """
    axes = []
    for axis in experiment.axes.values():
        arms = axis.arms or {str(value): {axis.field: value} for value in axis.values}
        if len(arms) < len(axis.values):
            raise ConfigError(f"experiment {title}: '{axis.field}' lists a value twice: {list(axis.values)}")
        axes.append([(label, list(fields.items())) for label, fields in arms.items()])
    longest = sum(max(len(label) for label, _ in arms) + len(" / ") for arms in axes)
    if longest > LABEL_CHARACTERS:
        raise ConfigError(
            f"experiment {title}: the name of an arm joins its labels and has at most {LABEL_CHARACTERS} characters, "
            f"got {longest:,}: shorten the labels, or name the values under 'arms'"
        )
    expanded = []
    for combination in itertools.product(*axes):
        labels = dict(zip(experiment.axes, (label for label, _ in combination), strict=True))
        expanded.append((" / ".join(labels.values()), labels, [item for _, fields in combination for item in fields]))
    known = dict.fromkeys(arm for arm, _, _ in expanded)
    if len(known) < len(expanded):
        raise ConfigError(f"experiment {title}: labels that hold ' / ' give two arms one name: rename them")
    for kind, arm in ((kind, arm) for kind, arms in experiment.compared().items() for arm in arms):
        if arm not in known:
            raise ConfigError(f"experiment {title}: {kind} with unknown arm '{arm}'; {_hint(arm, list(known))}")
    for measure in (item.measure for item in experiment.expect):
        if measure not in MEASURES:
            raise ConfigError(f"experiment {title}: unknown measure '{measure}'; {_hint(measure, list(MEASURES))}")
    return expanded


def configure(scale: Scale, overrides: list[tuple[str, Any]], *, seed: int, where: str) -> RunConfig:
    """The scale's run with dotted fields replaced, validated, and named windows turned into numbers of sequences."""
    raw = {section: getattr(scale, section).model_dump(mode="json") for section in SECTIONS}
    for path, value in overrides:
        _set(raw, path, value, where)
    _resolve_shares(raw, scale)
    config = parse(RunConfig, raw | {"seed": seed}, where)
    for domain in config.data.domains:
        if isinstance(domain.source, PipSource):
            corpus(domain.source)
    try:
        check_split(config.train, scale.hardware.ranks)
        check_capacity(config, scale.hardware.ranks)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    balance = config.balance
    named: dict[str, Any] = {
        "terms": tuple(
            term.model_copy(update={"window": window_sequences(term, config.train)}) for term in balance.terms
        )
    }
    for key, item in (("bias", balance.bias), ("capacity", balance.capacity)):
        if item:
            named[key] = item.model_copy(update={"window": window_sequences(item, config.train)})
    return config.model_copy(update={"balance": balance.model_copy(update=named)})


def run_name(config: RunConfig) -> str:
    """File name of a run: that of its series and the seed."""
    return f"{series_name(config)}-s{config.seed}"


def series_name(config: RunConfig) -> str:
    """Readable name of the runs that differ in their seed alone, for example `e16k2-w32+w1x0.01-1a2b3c4d`: experts and
    top-k, balance windows in sequences with later weights relative to the first, digest."""
    first = config.balance.terms[0].weight if config.balance.terms else 0.0
    parts = [_term_slug(term, first, config.train) for term in config.balance.terms]
    if bias := config.balance.bias:
        parts.append(f"b{window_sequences(bias, config.train)}x{bias.rate:g}")
    slug = "+".join(parts) or "w0"
    model = config.model
    kind = ("" if model.gate == "softmax" else f"-{model.gate}") + ("-forced" if config.balance.forced else "")
    return f"e{model.num_experts}k{model.top_k}{kind}-{slug[:60]}-{digest(config.model_copy(update={'seed': 0}))}"


def _term_slug(term: BalanceTerm, first: float, train: TrainConfig) -> str:
    slug = f"w{window_sequences(term, train)}" + ESTIMATOR_SLUGS[term.estimator]
    slug += f"{term.half_life:g}" if term.half_life is not None else ""
    slug += "shuffled" if term.shuffled else ""
    slug += f"from{term.start_step}" if term.start_step else ""
    slug += f"to{term.end_step}" if term.end_step is not None else ""
    return slug + (f"x{term.weight / first:.3g}" if first and not math.isclose(term.weight, first) else "")


def _resolve_shares(raw: dict[str, Any], scale: Scale) -> None:
    """Put numbers in place of the percentages of terms, so that an experiment suits every scale: weights in percent of
    that of the scale's first term, which is also the weight of a term that gives none, and steps in percent of all."""
    terms, steps = raw["balance"]["terms"], raw["train"]["steps"]
    if not isinstance(terms, list | tuple) or not isinstance(steps, int):
        return  # for the schema to refuse
    weight = scale.balance.terms[0].weight if scale.balance.terms else BalanceTerm().weight
    for term in (term for term in terms if isinstance(term, dict)):
        for key, whole in (("weight", weight), ("start_step", steps), ("end_step", steps)):
            value = term.setdefault(key, whole) if key == "weight" else term.get(key)
            if isinstance(value, str) and (share := PERCENTAGE.fullmatch(value)):
                part = whole * float(share[1]) / 100
                term[key] = part if key == "weight" else round(part)


def _set(raw: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Replace the field at a dotted path in place; list items are numbers. Raises `ConfigError` for an unknown path."""
    node: Any = raw
    parts = path.split(".")
    for depth, part in enumerate(parts):
        keys: dict[str, Any] = {}  # what the part may be -> how the node is indexed with it
        if isinstance(node, (dict, list)):
            keys = {str(key): key for key in (node if isinstance(node, dict) else range(len(node)))}
        if part not in keys:
            above = "".join(f"{name}." for name in parts[:depth])
            remedy = _hint(part, list(keys), above) if keys else f"'{above[:-1]}' has nothing below it"
            raise ConfigError(f"{where}: unknown field '{path}'; {remedy}")
        if depth == len(parts) - 1:
            node[keys[part]] = copy.deepcopy(value)
        else:
            node = node[keys[part]]


def _existing(path: Path, kind: str) -> Path:
    # os.path answers no where pathlib raises: for names that are too long and for folders that may not be read.
    if os.path.isfile(path):
        return path
    known = sorted(item.stem for item in path.parent.glob("*.yaml")) if os.path.isdir(path.parent) else []
    raise ConfigError(f"{path}: no such {kind}; {_hint(path.stem, known)}")


def _hint(word: str, known: list[str], prefix: str = "") -> str:
    """The nearest known word, or all of them."""
    # The comparison takes the product of two lengths: a text of thousands of characters is near to nothing.
    short = [item for item in known if len(item) <= LABEL_CHARACTERS]
    near = difflib.get_close_matches(word[:LABEL_CHARACTERS], short, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{prefix}{near[0]}'?"
    return f"known are {', '.join(prefix + item for item in known[:50])}" if known else "none is defined"
