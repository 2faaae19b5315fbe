"""What the arms of an experiment share and what they differ in, as dotted fields of their resolved configs."""

import json
from typing import Any

import pandas as pd

from moe.report import text
from moe.report.records import Records, Run
from moe.report.table import Table

ALWAYS = (
    "model.num_experts", "model.top_k", "model.num_shared_experts", "data.sequence_length", "train.steps",
    "train.batch_sequences", "train.micro_sequences", "train.learning_rate",
)  # fmt: skip
"""Fields that are shown even where they have the schema's default, which others are not."""
ABSENT = "–"


def _arms(records: Records, experiment: str) -> dict[str, Run]:
    """One run of every arm: its seeds share all settings."""
    return {arm: records.run(experiment, arm) for arm in records.arms(experiment)}


def shared_settings(records: Records, experiment: str) -> dict[str, str]:
    """Dotted field -> value of what all arms share: what a scale sets, and the fields of `ALWAYS`."""
    runs = list(_arms(records, experiment).values())
    leaves = [_leaves(run.config.model_dump(mode="json")) for run in runs]
    chosen = [_leaves(run.config.model_dump(mode="json", exclude_defaults=True)) for run in runs]
    names = [name for name in leaves[0] if name in ALWAYS or any(name in fields for fields in chosen)]
    shared = {name: leaves[0][name] for name in names if len({fields.get(name) for fields in leaves}) == 1}
    sizes = {f"{run.train.parameters:,} ({run.train.active_parameters:,} active)" for run in runs}
    tokens = {f"{run.train.tokens:,}" for run in runs}
    derived = {"parameters": sizes, "training tokens": tokens}
    return shared | {name: values.pop() for name, values in derived.items() if len(values) == 1}


def variable_table(records: Records, experiment: str) -> Table:
    """Every arm and the fields that arms differ in."""
    runs = _arms(records, experiment)
    leaves = {arm: _leaves(run.config.model_dump(mode="json")) for arm, run in runs.items()}
    names = dict.fromkeys(name for fields in leaves.values() for name in fields)
    varied = [name for name in names if len({fields.get(name) for fields in leaves.values()}) > 1]
    rows = [{"arm": arm} | {name: fields.get(name, ABSENT) for name in varied} for arm, fields in leaves.items()]
    frame = pd.DataFrame(rows, columns=["arm", *varied])
    caption = f"Resolved settings that differ between arms, as dotted fields; {ABSENT} is a field that the arm has not."
    title = "What the arms differ in"
    return Table("variables", "settings", title, caption, frame.assign(status="set"), frame, experiment)


def _leaves(settings: dict[str, Any]) -> dict[str, str]:
    """Dotted field -> value as text; the seed is left out, and the domains are one field."""
    found: dict[str, str] = {}

    def walk(path: str, value: Any) -> None:
        if path == "data.domains":
            found[path] = ", ".join(_domain(domain) for domain in value)
        elif isinstance(value, dict) and value:
            for key, child in value.items():
                walk(f"{path}.{key}" if path else key, child)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for i, child in enumerate(value):
                walk(f"{path}.{i}", child)
        elif path != "seed":
            found[path] = _text(value)

    walk("", settings)
    return found


def _domain(domain: dict[str, Any]) -> str:
    weight = domain.get("weight", 1)
    return domain["name"] if weight == 1 else f"{domain['name']} × {weight}"


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}".replace("-", "−")
    if isinstance(value, int):
        return text.number(value, 0)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
