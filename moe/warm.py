"""How does a stage start without loading its libraries? Forked from a process that has loaded them.

They take seconds, which short stages spend again and again. A warm process has loaded them and is forked for every
stage that asks for it: each is a process of its own as before, which can be killed, resumed and scheduled one by one.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from moe import interruption

WARM = "MOE_WARM"
"""Environment variable: the socket of a warm process, which stages are forked from if it listens there."""

LIBRARIES = ("moe.train", "moe.evaluate", "moe.estimators", "moe.latency")
"""Modules that a warm process loads; they load all others. None of them starts a thread that a fork would lack."""


@contextmanager
def loading() -> Iterator[None]:
    """Import libraries in the block. Python looks for garbage among all objects again and again while they become a
    million, and once more at its end, for a third of a start; of libraries nothing is garbage."""
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # a second call would keep the garbage of what has been done meanwhile
            gc.freeze()
        gc.enable()


def keep_warm(path: str, *, compiles: bool) -> None:
    """Start a process that listens at the socket `path` once it has loaded the libraries, with `compiles` those that
    compile layers too; it ends with this one.

    Not on other systems than Linux, whose libraries do not outlive a fork.
    """
    if sys.platform != "linux":
        return
    lifeline, _ = os.pipe()  # the write end stays open here alone, until this process ends
    command = [sys.executable, "-m", "moe", "warm", "--socket", path, *(["--compile"] if compiles else [])]
    warm = subprocess.Popen(command, stdin=lifeline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(lifeline)

    def end() -> None:  # an orderly end leaves nothing behind, not for a moment
        warm.kill()
        warm.wait()
        Path(path).unlink(missing_ok=True)

    atexit.register(end)


def listen(path: str, *, compiles: bool) -> list[str]:
    """Be a warm process until stdin closes. Returns once for every stage that is asked for, in a process forked for it,
    with the stage's arguments; that process has taken over the caller's environment, folder and streams.
    """
    from moe.provenance import code_fingerprint

    with interruption.held_back():
        for drawing in (False, True):  # kept: records name the code that is loaded here, whatever is edited later
            code_fingerprint(drawing=drawing)
        with loading():
            for module in LIBRARIES:
                if select.select([sys.stdin], [], [], 0)[0]:
                    os._exit(0)
                importlib.import_module(module)
            if compiles:
                _warm_compiler()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child stays a zombie
        Path(path).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            while True:
                if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                    Path(path).unlink(missing_ok=True)
                    os._exit(0)
                caller, _ = listener.accept()
                if not os.fork():
                    break
                caller.close()
        return _become_stage(caller)


def _warm_compiler() -> None:
    """Compile something: what that loads, and asks the C++ compiler, takes longer than to load compiled layers."""
    import torch

    torch._inductor.config.compile_threads = 1  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(Exception):  # no compiler: trainings say so themselves
        torch.compile(torch.neg)(torch.zeros(1))


def _become_stage(caller: socket.socket) -> list[str]:
    """Fork the stage that `caller` asks for and return in it; this process stands between both and ends with either."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (asked, *streams), _, _ = socket.recv_fds(caller, 1, 4)
    with open(asked) as file:
        request = json.load(file)
    above, below = socket.socketpair()  # either end tells of the other process's end
    if stage := os.fork():
        below.close()
        for stream in streams:
            os.close(stream)
        _stand_between(caller, above, stage)
    above.close()
    interruption.end_with(below.detach())
    caller.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if threads := os.environ.get("OMP_NUM_THREADS"):  # read by torch when it was loaded, with the value of that time
        import torch

        torch.set_num_threads(int(threads))
    return request["arguments"]


def _stand_between(caller: socket.socket, ended: socket.socket, stage: int) -> NoReturn:
    """Tell the stage the signals of its caller, and the caller the exit status of its stage."""
    while ended not in select.select([caller, ended], [], [])[0]:
        told = caller.recv(1)
        if not told:
            os._exit(0)
        os.kill(stage, told[0])
    status = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
    with suppress(OSError):
        caller.sendall(str(128 - status if status < 0 else status).encode())  # of a signal, as a shell says it
    os._exit(0)


def run_warm(argv: Sequence[str]) -> int | None:
    """Run the stage with the arguments `argv` in a fork of the warm process of `MOE_WARM`; returns its exit status.

    None if there is none. The stage is told of the signals of this process and does not outlive it.
    """
    path = os.environ.pop(WARM, None)
    if not path:
        return None
    warm = socket.socket(socket.AF_UNIX)
    # Signals wait until there is somebody to be told.
    with interruption.held_back(), tempfile.TemporaryFile("w") as request:
        json.dump({"arguments": list(argv), "folder": os.getcwd(), "environment": dict(os.environ)}, request)
        request.seek(0)
        try:
            warm.connect(path)
            socket.send_fds(warm, [b" "], [request.fileno(), 0, 1, 2])
        except OSError:  # nobody listens: not yet, or not on this machine
            return None
        for number in interruption.STATUS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: warm.sendall(bytes([number])))
    return int(warm.recv(16) or 128 + signal.SIGKILL)
