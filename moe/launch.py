"""How do several processes of one training on this machine come about, and end together?

Each rank is the same command with the environment that torch and Accelerate read. Rank 0 alone writes files and is told
of signals; a rank that fails, or is killed, ends the others, and why is said once.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from moe import interruption

LIFELINE = "MOE_LIFELINE"
"""Environment variable: a pipe that closes when the launching process has gone, however it went."""

POLL_SECONDS = 0.1
BLAME_SECONDS = 2.0
"""A rank that fails waits so long before it says why: if it failed because another one did, it is ended by then."""


def rendezvous(processes: int) -> dict[str, str]:
    """Environment in which so many processes of this machine find each other, on a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def launch(argv: Sequence[str], *, processes: int, threads: int, lock: int) -> int:
    """Run `python -m moe <argv>` in `processes` ranks that hold the open file `lock`; returns the exit status.

    It is 0, or that of the rank that failed, or 1 where a signal killed one. Ctrl-C and SIGTERM are passed to rank 0.
    """
    # The write end stays open here alone, until this process ends.
    lifeline, _ = os.pipe()
    shared = {**rendezvous(processes), "LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": threads, LIFELINE: lifeline}
    ranks: list[subprocess.Popen[bytes]] = []
    # Rank 0 alone is heard, or every warning would come once per rank.
    outputs = [None, *(tempfile.TemporaryFile() for _ in range(1, processes))]  # noqa: SIM115
    try:
        with interruption.held_back():
            for rank, output in enumerate(outputs):
                settings = {**shared, "RANK": rank, "LOCAL_RANK": rank}
                environment = os.environ | {key: str(value) for key, value in settings.items()}
                command = [sys.executable, "-m", "moe", *argv]
                ranks.append(
                    subprocess.Popen(command, env=environment, pass_fds=(lifeline, lock), stdout=output, stderr=output)
                )
        _wait(ranks)
    except interruption.Stopped as stop:
        interruption.ignore()
        ranks[0].send_signal(stop.number)
        _wait(ranks)
    finally:
        ended = [rank.poll() for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.wait()
    failed = next((rank for rank, status in enumerate(ended) if status), None)
    if failed is None:
        return 0
    status, output = ended[failed], outputs[failed]
    assert status is not None
    if status < 0:
        name = signal.Signals(-status).name
        print(
            f"error: process {failed + 1} of {processes} was ended by {name}; run the same command again to continue",
            file=sys.stderr,
        )
        return 1
    if output:
        output.seek(0)
        shutil.copyfileobj(output, sys.stderr.buffer)
    return status


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Return when all have ended, rank 0 has stopped or one has failed.

    Another rank that has stopped did not fail: rank 0 may still be writing the state that all of them have joined.
    """
    stopped = interruption.STATUS[signal.SIGTERM]
    while None in (statuses := [rank.poll() for rank in ranks]):
        if statuses[0] or not {None, 0, stopped}.issuperset(statuses):
            return
        time.sleep(POLL_SECONDS)


def become_rank() -> None:
    """Prepare this process, a rank that `launch` or `accelerate launch` has started."""
    import torch
    from accelerate.utils import check_cuda_p2p_ib_support

    if handle := os.environ.get(LIFELINE):
        interruption.end_with(int(handle))
    if not is_first():
        interruption.ignore()
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not check_cuda_p2p_ib_support():
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}


def is_rank() -> bool:
    """Whether this process is one of several that train together."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether it is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def leave_blame() -> None:
    """Wait before the reason of a failure is told: rank 0 first, since the same mistake may fail all of them."""
    time.sleep(BLAME_SECONDS if is_first() else 2 * BLAME_SECONDS)
