"""Is the data ready before the model is? Tokenising and packing beside `datasets.map`, and the loader beside a step.

Both packers start from the same documents in memory, use the same tokenizer on the same two cores and end with token
files on disk. `datasets.map` tokenises batches of 1000 documents with the tokenizer's own batch call, then joins and
cuts each of them; it leaves out what a batch has over, as is usual, and we do not. The loader is timed in a training
run of the cpu scale, and alone on a batch as large as those of the paper.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from benchmarks.ratios import spread, summary
from benchmarks.workload import CPU
from moe.config import DataConfig, RunConfig
from moe.data.distinct import DistinctDocuments
from moe.data.order import SampleOrder, read_batch
from moe.data.packing import TokenFile, prepare
from moe.data.sources import fetch
from moe.data.tokenizer import load_tokenizer, sample
from moe.scale import HardwareConfig
from moe.settings import parse

CORES = 2
REPEATS = 5
TEXT_DOMAINS, TEXT_BYTES = 4, 1_500_000  # UTF-8 bytes of each of the first domains of the scale
STEPS, LOG_EVERY = 60, 3
LARGE_DOMAINS, LARGE_BATCH, LARGE_LENGTH, LARGE_STEP = 16, 1024, 4096, 100_000


def measure() -> dict[str, Any]:
    """Seconds and CPU seconds of every packer and round, of the loader and the step, and the medians and ratios.

    Takes a process of its own: tokenizers fixes its number of threads when it is first used.
    """
    fetch(CPU.data.domains, evaluation=False)
    with tempfile.TemporaryDirectory() as folder:
        environment = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(CORES), "HF_HOME": folder}
        code = "import sys; from benchmarks import packing; packing._measure(packing.Path(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, folder],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the measuring process failed:\n{done.stderr}")
        return json.loads(Path(folder, "record.json").read_text())


def text(record: dict[str, Any]) -> str:
    """The record as lines for a terminal, each target beside what was measured."""
    ratio, cpu_ratio, loader, large = (record[name] for name in ("ratio", "cpu_ratio", "loader", "large"))
    rows = [f"data: {record['megabytes']:.1f} MB of text to packed files on {record['cores']} cores"]
    for name, packer in record["packers"].items():
        speeds = f"{packer['megabytes_per_second']:6.2f} MB/s   {packer['megabytes_per_cpu_second']:6.2f} MB"
        rows.append(f"  {name:26s} {speeds} per CPU second")
    for unit, found, target in (("", ratio, "   target at least 1"), (" by CPU time", cpu_ratio, "")):
        rows.append(f"  ours / {record['best']}{unit}: {spread(found)}{target}")
    times = f"{loader['ms']:.2f} of {loader['step_ms']:.0f} ms"
    rows.append(f"  loader share {loader['share']:6.2%} of a step of the cpu scale ({times})   target below 2 %")
    batch = f"{LARGE_BATCH} x {LARGE_LENGTH} tokens of {LARGE_DOMAINS} domains, purity 0.5, step {LARGE_STEP:,}"
    rows.append(f"  loader at {batch}: {large['ms']:.1f} ms, {large['ns_per_token']:.2f} ns per token")
    rows.append(f"  data stage of the cpu scale: {record['stage_seconds']:.1f} s")
    return "\n".join(rows)


def _measure(folder: Path) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    start = time.perf_counter()
    prepare(CPU.data, folder / "packed")
    stage_seconds = time.perf_counter() - start
    record = _compare(CPU.data, load_tokenizer(folder / "packed" / "tokenizer"))
    record |= {"stage_seconds": stage_seconds, "loader": _loader(CPU, folder), "large": _large()}
    (folder / "record.json").write_text(json.dumps(record))


def _compare(config: DataConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    reads = (DistinctDocuments(domain.source) for domain in config.domains[:TEXT_DOMAINS])
    documents = [text for read in reads for text in sample((text for _, text in read), TEXT_BYTES)]
    megabytes = sum(len(text.encode("utf-8")) for text in documents) / 1e6
    length = config.sequence_length
    packers: dict[str, Callable[[Path], Any]] = {
        "ours": lambda folder: _pack(documents, tokenizer, folder),
        "datasets.map, num_proc=1": lambda folder: _map(documents, tokenizer, length, folder, num_proc=None),
        "datasets.map, num_proc=2": lambda folder: _map(documents, tokenizer, length, folder, num_proc=CORES),
    }
    _check(packers, length)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in packers}
    for _ in range(REPEATS):
        for name, pack in packers.items():
            with tempfile.TemporaryDirectory() as folder:
                start, start_cpu = time.perf_counter(), _cpu_seconds()
                pack(Path(folder))
                samples[name].append((time.perf_counter() - start, _cpu_seconds() - start_cpu))
    seconds, cpu_seconds = ({name: [pair[i] for pair in samples[name]] for name in samples} for i in range(2))
    best = min(list(packers)[1:], key=lambda name: statistics.median(seconds[name]))
    speeds = {
        name: {
            "seconds": seconds[name],
            "cpu_seconds": cpu_seconds[name],
            "megabytes_per_second": megabytes / statistics.median(seconds[name]),
            "megabytes_per_cpu_second": megabytes / statistics.median(cpu_seconds[name]),
        }
        for name in packers
    }
    ratio, cpu_ratio = summary(seconds[best], seconds["ours"]), summary(cpu_seconds[best], cpu_seconds["ours"])
    found = {"megabytes": megabytes, "documents": len(documents), "cores": CORES, "repeats": REPEATS}
    return found | {"packers": speeds, "best": best, "ratio": ratio, "cpu_ratio": cpu_ratio}


def _pack(documents: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path) -> np.ndarray:
    """Our packing: the stream [tokens] of a file that has room for all documents."""
    file = TokenFile(folder / "ours.bin", 1 << 40, tokenizer, keep_texts=False)
    for text in documents:
        file.add(text)
    file.flush()
    return np.memmap(file.path, dtype="<u2", mode="r")


def _map(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, length: int, folder: Path, *, num_proc: int | None
) -> tuple[Any, Any]:
    """Its packing: the tokenised and the packed data set, both in arrow files in `folder`."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    backend, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encodings = backend.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, end] for encoding in encodings]}

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        stream = list(chain.from_iterable(batch["input_ids"]))
        whole = len(stream) // length * length
        return {"input_ids": [stream[i : i + length] for i in range(0, whole, length)]}

    settings: dict[str, Any] = {"batched": True, "num_proc": num_proc, "load_from_cache_file": False}
    texts = datasets.Dataset.from_dict({"text": documents})
    tokenised = texts.map(tokenise, remove_columns="text", cache_file_name=str(folder / "tokens.arrow"), **settings)
    return tokenised, tokenised.map(group_texts, cache_file_name=str(folder / "packed.arrow"), **settings)


def _check(packers: dict[str, Callable[[Path], Any]], length: int) -> None:
    """All packers give the same tokens in the same order; this also warms them up."""
    with tempfile.TemporaryDirectory() as folder:
        ours, *others = (pack(Path(folder)) for pack in packers.values())
        for tokenised, packed in others:
            assert list(chain.from_iterable(tokenised["input_ids"])) == ours.tolist()
            first = np.array(list(islice(packed["input_ids"], 100)))
            assert np.array_equal(first, ours[: 100 * length].reshape(-1, length))
            assert 0.99 < packed.num_rows * length / len(ours) <= 1


def _loader(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Milliseconds of the loader and of a whole step, in a training run with all that belongs to one."""
    from moe.train import train

    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": STEPS})})
    train(
        short,
        run="loader",
        data_folder=folder / "packed",
        run_folder=folder,
        state_folder=folder / "state",
        hardware=HardwareConfig(log_every=LOG_EVERY),
    )
    parts = [json.loads(line)["seconds"] for line in (folder / "speed.jsonl").read_text().splitlines()]
    loads, steps = [part["data"] for part in parts], [sum(part.values()) for part in parts]
    share = statistics.median(loads) / statistics.median(steps)
    medians = {"ms": statistics.median(loads) * 1e3, "step_ms": statistics.median(steps) * 1e3, "share": share}
    return {"load_seconds": loads, "step_seconds": steps, **medians}


def _large() -> dict[str, Any]:
    """The loader alone, on a batch as large as those of the paper and far into a run; the packed data is in memory."""
    rng = np.random.default_rng(0)
    packed = [rng.integers(0, 1 << 16, (512, LARGE_LENGTH), dtype=np.uint16) for _ in range(LARGE_DOMAINS)]
    domains = [{"name": f"d{i}", "source": {"kind": "files", "paths": ["-"]}} for i in range(LARGE_DOMAINS)]
    config = parse(DataConfig, {"domains": domains, "purity": 0.5, "sequence_length": LARGE_LENGTH}, "benchmark")
    order = SampleOrder(
        config, [len(tokens) for tokens in packed], batch_sequences=LARGE_BATCH, micro_sequences=1, seed=0
    )
    seconds = []
    for step in range(LARGE_STEP, LARGE_STEP + 10):
        start = time.perf_counter()
        read_batch(packed, *order.batch(step))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {"seconds": seconds, "ms": median * 1e3, "ns_per_token": median / (LARGE_BATCH * LARGE_LENGTH) * 1e9}


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
