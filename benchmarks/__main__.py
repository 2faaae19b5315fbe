"""`python -m benchmarks [part ...]`: measure, print what was found, and keep it as JSON and a figure."""

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch

from moe.provenance import complete_file, device_name, stamp, write_json
from moe.report import style
from moe.settings import ConfigError

PARTS = ("training", "balance", "start", "packing", "memory", "grid_size")
ASKED = ("levers",)
"""Parts that are measured when they are named."""


def run(parts: list[str], out: Path) -> None:
    """Measure the parts, or all of `PARTS`; writes `<part>.json` into `out`, and with training its figure.

    Raises `ConfigError` for a name that is no part, before anything is measured.
    """
    for part in parts:
        if part not in PARTS + ASKED:
            raise ConfigError(f"unknown part '{part}'; the parts are {', '.join(PARTS + ASKED)}")
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for part in parts or PARTS:
        module = importlib.import_module(f"benchmarks.{part}")
        began = time.perf_counter()
        measured = module.measure()
        seconds = time.perf_counter() - began
        print(f"{module.text(measured)}\n", flush=True)
        head = stamp("moe-benchmark/1", device=device, part=part, seconds=seconds)
        write_json(out / f"{part}.json", head | {"measured": measured})
        if part == "training":
            draw(measured, out)


def draw(measured: dict, out: Path) -> None:
    """Write the figure of the training part."""
    from benchmarks.training_figure import training_figure

    with style.context():
        figure = training_figure(measured)
        for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
            with complete_file(out / f"training{suffix}") as path:
                figure.savefig(path, dpi=160, metadata=metadata)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure these parts, or all but levers.")
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS + ASKED))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="(default: %(default)s)")
    args = parser.parse_args()
    try:
        run(args.parts, args.out)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
