"""The findings as a table, and as a page that also says what the properties mean and how to write an adapter."""

import textwrap
from importlib.metadata import version
from pathlib import Path

from moe.conformance.kit import Adapter
from moe.conformance.properties import PROPERTIES, Target
from moe.conformance.targets import Finding

HEAD = """# Conformance of load-balancing losses

What users of the loss N_E Σ f_i P_i rely on, measured against implementations of it: one optimizer step of two routers
in fp64, split over ranks and accumulation steps in many ways. `fails` is a measurement, not a verdict: a loss that
counts f per micro-batch by intent does so. A re-implementation says so; it shows what the documented behaviour does,
and runs none of the project's code.

Measured with {versions}.
This page is generated: `python -m moe conformance --out docs/conformance.md`.

## What holds

"""
OWN = """
## Your own implementation

Wrap it in an adapter and name it; the exit status is 1 where a property fails:

```
python -m moe conformance path/to/mine.py:Mine
python -m moe conformance package.module:Mine
```

An adapter stands for the framework around the loss. The kit hands it the routings of all ranks of a pass side by side,
takes the losses that it returns, and adds up their gradients over ranks and passes. So whatever the framework divides
by, the adapter divides by, and a wrong factor shows. This is a whole one:

```python
{example}```

`moe.conformance.Adapter` has further hooks, and attributes for the tolerance and for the kind of recomputation:

{hooks}
A property that an implementation does not claim is named in `not_applicable`, with the reason; the names are those of
the list above.
"""


def table(findings: dict[str, dict[str, Finding]]) -> str:
    """Markdown with a row per property and a column per implementation, aligned for the eye."""
    rows = [["property", *findings]]
    rows += [[title, *(found[title].outcome for found in findings.values())] for title in PROPERTIES]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def details(findings: dict[str, dict[str, Finding]]) -> str:
    """What fails and by how much, and what does not apply and why."""
    parts = []
    for name, found in findings.items():
        lines = [f"{title}: {_detail(finding)}" for title, finding in found.items() if finding.outcome != "holds"]
        parts.append(f"{name}:\n\n" + _list(lines or ["every property holds"]))
    return "\n".join(parts)


def page(targets: dict[str, Target], findings: dict[str, dict[str, Finding]]) -> str:
    """The whole page, markdown."""
    versions = " and ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers"))
    meanings = [f"{title} (`{check.__name__}`): {_prose(check)}" for title, check in PROPERTIES.items()]
    names = [f"`{name}` (tolerance {target.tolerance:.0e}): {_prose(target)}" for name, target in targets.items()]
    hooks = [f"`{name}`: {_prose(getattr(Adapter, name))}" for name in ("begin", "inside", "end", "logged")]
    return "".join(
        [
            HEAD.format(versions=versions),
            table(findings),
            "\n## What fails, and by how much\n\n",
            details(findings),
            "\n## What the properties mean\n\n",
            _list(meanings),
            "\n## The implementations\n\n",
            _list(names),
            OWN.format(example=Path(__file__).with_name("example.py").read_text(encoding="utf-8"), hooks=_list(hooks)),
        ]
    )


def _detail(finding: Finding) -> str:
    return f"not applicable, {finding.detail}" if finding.outcome == "n/a" else finding.detail


def _prose(thing: object) -> str:
    """A docstring in one line."""
    return " ".join((thing.__doc__ or "no description").split())


def _list(items: list[str]) -> str:
    wrapped = [textwrap.fill(item, width=118, subsequent_indent="  ", break_on_hyphens=False) for item in items]
    return "".join(f"- {item}\n" for item in wrapped)
