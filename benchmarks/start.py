"""What does a training cost before its first step? One that is started beside one forked from a warm process.

Both train the cpu scale's widest run for a single step, and write the same weights. And its libraries alone: loaded as
Python does it, and without a search for garbage.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ratios import spread, summary
from benchmarks.workload import CPU, PLAN, pack_words, training
from moe.config import RunConfig
from moe.warm import WARM

ROUNDS = 5
IMPORTS = {
    "as Python does": "import moe.train",
    "no garbage sought": "from moe.warm import loading\nwith loading():\n    import moe.train",
}


def measure() -> dict[str, Any]:
    """Seconds of a training of one step in either way, in turns, layers that were compiled before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = CPU.model_dump() | {"data": pack_words(folder).model_dump()}
        config = RunConfig.model_validate(raw | {"train": raw["train"] | {"steps": 1, "warmup_steps": 1}})
        _train(folder / "first", config)
        socket = folder / "socket"
        command = [sys.executable, "-m", "moe", "warm", "--socket", str(socket), "--compile"]
        began = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.PIPE) as warm:
            while not socket.exists() and warm.poll() is None:
                time.sleep(0.05)
            if warm.poll() is not None:
                raise RuntimeError("the warm process has ended, so nothing would be forked")
            loading = time.perf_counter() - began
            ways: dict[str, dict[str, str]] = {"started": {}, "forked": {WARM: str(socket)}}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            weights = set()
            for turn in range(ROUNDS):
                for way, environment in ways.items():
                    run = folder / f"{way}-{turn}"
                    seconds[way].append(_train(run, config, **environment))
                    weights.add(json.loads((run / "run" / "train.json").read_text())["weights_sha256"])
            warm.communicate()
    if len(weights) > 1:
        raise RuntimeError(f"{len(weights)} different weights: a forked training is not the same as a started one")
    imports: dict[str, list[float]] = {way: [] for way in IMPORTS}
    for _ in range(ROUNDS):
        for way, code in IMPORTS.items():
            imports[way].append(_seconds([sys.executable, "-c", code]))
    return {
        "seconds": {way: statistics.median(found) for way, found in seconds.items()},
        "ratio": summary(seconds["forked"], seconds["started"]),
        "loading_seconds": loading,
        "import_seconds": {way: statistics.median(found) for way, found in imports.items()},
        "import_ratio": summary(imports["no garbage sought"], imports["as Python does"]),
    }


def text(record: dict[str, Any]) -> str:
    """A line for each way, then their ratio."""
    lines = ["a training of one step, layers compiled before"]
    lines += [f"  {way:8} {seconds:5.2f} s" for way, seconds in record["seconds"].items()]
    loading = f"libraries loaded once in {record['loading_seconds']:.1f} s"
    lines += [f"  forked / started {spread(record['ratio'])}, equal weights; {loading}"]
    lines += ["a process that loads the libraries and ends"]
    lines += [f"  {way:17} {seconds:5.2f} s" for way, seconds in record["import_seconds"].items()]
    return "\n".join([*lines, f"  ratio {spread(record['import_ratio'])}"])


def _train(folder: Path, config: RunConfig, **environment: str) -> float:
    return _seconds(training(folder, config, PLAN.scale.hardware), **environment)


def _seconds(command: list[str], **environment: str) -> float:
    """From start to end of a process."""
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | environment, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
