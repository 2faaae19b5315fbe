"""What every configuration key means, as a page: `config/README.md` is this file's output."""

import json
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from moe.config import (
    BalanceConfig,
    BalanceTerm,
    BiasConfig,
    CapacityConfig,
    DataConfig,
    DomainConfig,
    FilesSource,
    HubSource,
    ModelConfig,
    PipSource,
    TrainConfig,
)
from moe.scale import (
    Axis,
    EstimatorsConfig,
    EvaluationConfig,
    Expectation,
    Experiment,
    HardwareConfig,
    LatencyConfig,
    Recovery,
    Scale,
)

HEAD = """# Configuration

A **scale** (`config/scales/<name>.yaml`) says how big: `snakemake --config scale=<name>`.
An **experiment** (`config/experiments/<name>.yaml`) says what is compared; a scale lists the experiments that it runs.
Unknown keys are refused with the nearest valid one, and every run is validated before the first job starts.
Numbers with an exponent need a point for YAML to read them as numbers: `1.0e-3`.

This page is generated: `python -m moe schema > config/README.md`.
"""
SECTIONS: dict[str, type[BaseModel]] = {
    "Scale": Scale,
    "`model`": ModelConfig,
    "`data`": DataConfig,
    "`data.domains[]`": DomainConfig,
    "`source` with `kind: pip`": PipSource,
    "`source` with `kind: hub`": HubSource,
    "`source` with `kind: files`": FilesSource,
    "`train`": TrainConfig,
    "`balance`": BalanceConfig,
    "`balance.terms[]`": BalanceTerm,
    "`balance.bias`": BiasConfig,
    "`balance.capacity`": CapacityConfig,
    "`evaluation`": EvaluationConfig,
    "`latency`": LatencyConfig,
    "`estimators`": EstimatorsConfig,
    "`hardware`": HardwareConfig,
    "Experiment": Experiment,
    "`axes.<name>`": Axis,
    "`expect[]`": Expectation,
    "`recovery`": Recovery,
}


def markdown() -> str:
    """The page: one table per section with key, type, default and meaning."""
    return HEAD + "".join(_section(title, schema) for title, schema in SECTIONS.items())


def _section(title: str, schema: type[BaseModel]) -> str:
    lines = [f"\n## {title}\n", " ".join((schema.__doc__ or "").split()) + "\n"]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in schema.model_fields.items():
        limits = "".join(f", {limit}" for limit in _limits(field.metadata))
        meaning = field.description or _first_line(field.annotation)
        if key == "kind":
            meaning = "Selects this kind of source."
        cells = (
            f"`{field.alias or key}`",
            _type(field.annotation) + limits,
            _default(field.default),
            " ".join(meaning.split()),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _first_line(annotation: Any) -> str:
    return (annotation.__doc__ or "") if _is_model(annotation) else ""


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _limits(metadata: list[Any]) -> list[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "at least"}
    return [f"{sign} {getattr(item, name)}" for item in metadata for name, sign in signs.items() if hasattr(item, name)]


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if origin is tuple:
        return f"list of {_type(parts[0])}" if parts[-1] is Ellipsis else f"list of {len(parts)} {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if _is_model(annotation):
        return "section"
    names = {type(None): "null", str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"}
    return names[annotation]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        return "[" + ", ".join("its defaults" if isinstance(item, BaseModel) else str(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}"
    return f"`{json.dumps(value)}`"
