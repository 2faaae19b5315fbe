"""Which implementation is meant, and what of each property holds for it."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from moe.conformance.kit import Adapter
from moe.conformance.properties import PROPERTIES, Target
from moe.settings import ConfigError

BUILT_IN = {
    "ours": "moe.conformance.adapters.ours:Ours",
    "transformers": "moe.conformance.adapters.transformers:Transformers",
    "megatron": "moe.conformance.adapters.megatron:Megatron",
    "prefix": "moe.conformance.adapters.prefix:Prefix",
}


class Finding(NamedTuple):
    """What was found of one property."""

    outcome: str
    """holds, fails or n/a"""
    detail: str = ""
    """What was measured against what was expected, or why the property does not apply."""


def load(target: str) -> Target:
    """The adapter that `target` names: a built-in, `package.module:name` or `path/to/file.py:name`.

    Raises `ConfigError` where there is none.
    """
    where, colon, name = BUILT_IN.get(target, target).rpartition(":")
    if not (where and colon and name):
        near = difflib.get_close_matches(target, BUILT_IN, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"built-ins are {', '.join(BUILT_IN)}"
        raise ConfigError(f"'{target}' is no built-in, package.module:name or path/to/file.py:name; {hint}")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_package(where)
    except Exception as error:
        raise ConfigError(f"{where}: cannot be imported ({_in_one_line(error)})") from None
    adapter = getattr(module, name, None)
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        found = "is not a subclass of moe.conformance.Adapter" if hasattr(module, name) else "is not there"
        raise ConfigError(f"{where}: '{name}' {found}; its adapters are: {', '.join(_adapters(module)) or 'none'}")
    names = [check.__name__ for check in PROPERTIES.values()]
    for unknown in set(adapter.not_applicable) - set(names):
        raise ConfigError(f"{target}: not_applicable names '{unknown}'; properties are {', '.join(names)}")
    return adapter


def examine(target: Target) -> dict[str, Finding]:
    """Measure every property; its title -> what was found."""
    return {title: _examine(target, check) for title, check in PROPERTIES.items()}


def _examine(target: Target, check: Callable[[Target], list[str]]) -> Finding:
    if reason := target.not_applicable.get(check.__name__):
        return Finding("n/a", reason)
    try:
        said = check(target)
    except Exception as error:
        # An implementation that cannot do something says so in its own way.
        said = [f"raises {_in_one_line(error)}"]
    return Finding("fails", "; ".join(said)) if said else Finding("holds")


def _from_package(name: str) -> ModuleType:
    if "" not in sys.path:
        # An installed `moe` command looks into its own folder, not into the user's.
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"conformance_target_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _adapters(module: ModuleType) -> list[str]:
    found = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    return [name for name, value in found.items() if issubclass(value, Adapter) and value is not Adapter]


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
