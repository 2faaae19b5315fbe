"""A run whose balance terms switch at some step shares all steps before with its parent, the run that never switches.

The parent leaves its state at that step beside its own, in `<state>.branches/<step>`: a state folder as it was then,
checkpoint and log. The child goes on from there, to the weights, bit for bit, that it would reach from the first step
(arXiv:2501.11873, Table 3).
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from moe.config import RunConfig
from moe.provenance import complete_file, complete_folder
from moe.settings import ConfigError


def branch(config: RunConfig) -> tuple[RunConfig, int] | None:
    """The parent of a run, and the first step at which a term starts or ends; None where nothing switches, or where the
    state of the parent is not that of the run."""
    terms = config.balance.terms
    switches = {step for term in terms for step in (term.start_step, term.end_step) if step}
    step = min(switches, default=config.train.steps)
    if step >= config.train.steps:
        return None
    always = [term.model_copy(update={"start_step": 0, "end_step": None}) for term in terms]
    kept = [new for new, term in zip(always, terms, strict=True) if term.start_step == 0]
    # The past of a term is kept by its place among the terms.
    for place, term in enumerate(always):
        if term.estimator in ("previous", "ema") and kept[place : place + 1] != [term]:
            return None
    # Compiled layers that count draws may round in another order.
    if any(term.shuffled for term in terms) != any(term.shuffled for term in kept):
        return None
    balance = config.balance.model_copy(update={"terms": tuple(kept)})
    return config.model_copy(update={"balance": balance}), step


def branch_folder(state_folder: Path, step: int) -> Path:
    """Where a run leaves its state after a step for its children."""
    return state_folder.with_name(f"{state_folder.name}.branches") / str(step)


@contextlib.contextmanager
def left_for_branches(state_folder: Path, step: int) -> Iterator[Path]:
    """Give a folder for the checkpoint of this step; with the log and what else is recorded it is left for children."""
    with complete_folder(branch_folder(state_folder, step)) as folder:
        yield folder
        for path in state_folder.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copyfile(path, folder / path.name)


def start(config: RunConfig, source: Path, state_folder: Path) -> None:
    """Give a run that has no checkpoint yet the state that its parent has left in `source`; where there is none, say
    that it trains from the first step. Raises `ConfigError` where the run has no parent."""
    if not (found := branch(config)):
        raise ConfigError(f"--from {source}: no balance term of the run switches, so it has no parent to start from")
    _, step = found
    if any(state_folder.glob("[0-9]*-*.safetensors")):
        return
    if not any(source.glob(f"{step:08d}-*.safetensors")):
        sentence = f"{source}: no state of the parent; trained from the first step, to the same weights"
        print(sentence, file=sys.stderr)
        return
    with complete_folder(state_folder) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        with complete_file(folder / "train.jsonl") as temporary:
            lines = (source / "train.jsonl").read_text().splitlines()
            temporary.write_text("".join(json.dumps(_of_child(config, json.loads(line))) + "\n" for line in lines))


def _of_child(config: RunConfig, line: dict) -> dict:
    """A line of the parent's log as the child would have written it: terms that have not started have no value."""
    values = iter(line["balance"])
    balance = [next(values) if term.start_step == 0 else None for term in config.balance.terms]
    return {**line, "balance": balance}
