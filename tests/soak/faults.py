"""Which processes of a pipeline are alive, and the ways to end some of them."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

Snakemake = subprocess.Popen[bytes]


def processes(folder: Path) -> list[psutil.Process]:
    """All that work in `folder`, whoever their parents are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder):
                found.append(process)
    return found


def stage(process: psutil.Process) -> str | None:
    """The stage that a process works on, of `python -m moe <stage>`."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if words[1:3] == ["-m", "moe"]:
            return words[3]
    return None


def stages(folder: Path) -> Counter[str]:
    """How many processes work on each stage."""
    return Counter(found for process in processes(folder) if (found := stage(process)))


def kill_everything(snakemake: Snakemake, folder: Path, rng: random.Random) -> None:
    """As a power cut."""
    while alive := processes(folder):
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()


def terminate_everything(snakemake: Snakemake, folder: Path, rng: random.Random) -> None:
    """As SLURM before the end of an allocation."""
    for process in processes(folder):
        with contextlib.suppress(psutil.Error):
            process.terminate()


def terminate(snakemake: Snakemake, folder: Path, rng: random.Random) -> None:
    """As `kill`."""
    snakemake.terminate()


def interrupt(snakemake: Snakemake, folder: Path, rng: random.Random) -> None:
    """As Ctrl-C in a terminal, which reaches the whole process group."""
    os.killpg(snakemake.pid, signal.SIGINT)


def kill_worker(snakemake: Snakemake, folder: Path, rng: random.Random) -> None:
    """As the kernel does when memory runs out: one process of a stage, perhaps one rank of a training."""
    workers = [process for process in processes(folder) if stage(process)]
    if workers:
        with contextlib.suppress(psutil.Error):
            rng.choice(workers).kill()


def kill_snakemake(snakemake: Snakemake, folder: Path, rng: random.Random) -> None:
    """Its jobs go on without it, and the next call meets them."""
    snakemake.kill()


FAULTS: dict[str, Callable[[Snakemake, Path, random.Random], None]] = {
    "SIGKILL to all": kill_everything,
    "SIGTERM to all": terminate_everything,
    "SIGTERM": terminate,
    "Ctrl-C": interrupt,
    "SIGKILL to one": kill_worker,
    "SIGKILL to Snakemake": kill_snakemake,
}


def wait_for_end(fault: str, snakemake: Snakemake, folder: Path, timeout: float = 60) -> str:
    """What came of a fault, in words; raises `TimeoutError` where Snakemake does not end or its jobs outlive it."""
    if fault == "SIGKILL to one":
        return "Snakemake goes on"
    began = time.monotonic()
    try:
        status = snakemake.wait(timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"Snakemake has not ended after {timeout:.0f} s") from None
    took = time.monotonic() - began
    if fault == "SIGKILL to Snakemake":
        return f"{sum(stages(folder).values())} processes go on without it"
    while left := stages(folder):
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"still there: {dict(left)}")
        time.sleep(0.1)
    return f"ended after {took:.1f} s with status {status}"
