"""How a process ends when it is told to: by Ctrl-C (SIGINT), or by SIGTERM, which schedulers send before they kill.

Both raise an exception wherever a stage is, so that temporary files go on the way out. Training defers SIGTERM to the
end of its step, and Snakemake tells its jobs. What works for another process ends with it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, NoReturn

STATUS = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: os.EX_TEMPFAIL}
"""Exit status after each signal: 130, as of shells, and 75, which says that nothing is wrong."""

REPEAT_SECONDS = 2.0
"""Library code may swallow an exception that comes anywhere; it comes again until it has arrived."""


class Stopped(BaseException):
    """A signal has come; as `KeyboardInterrupt`, it is no `Exception`."""

    def __init__(self, number: int, what: str = "") -> None:
        super().__init__(what or ("interrupted" if number == signal.SIGINT else "terminated"))
        self.number = signal.Signals(number)


class Deferred:
    """Until `release`, SIGTERM only sets `requested`, for a loop that stops where its state is whole."""

    def __init__(self) -> None:
        self.requested = False
        self._before = signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def release(self) -> None:
        """From now on SIGTERM does what it did before."""
        signal.signal(signal.SIGTERM, self._before)


_received: list[Stopped] = []


def obey() -> None:
    """Raise `Stopped` when a signal comes, or one that has been held back; what the caller ignores stays ignored."""
    for number in (*STATUS, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as of a job in the background
            signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)


def ignore() -> None:
    """Let no signal end this process."""
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals come after the block; child processes that it starts get them once they `obey`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)


def cause(error: BaseException) -> Stopped | None:
    """The signal behind `error`; what fails after it has come, fails because library code was cut short."""
    if isinstance(error, Stopped):
        return error
    return Stopped(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else next(iter(_received), None)


def report(stop: Stopped) -> int:
    """Say in one sentence what has ended the process; its exit status."""
    ignore()
    print(f"error: {stop}; run the same command again to continue", file=sys.stderr)
    return STATUS[stop.number]


def end_with(pipe: int) -> None:
    """End this process when the other end of `pipe` closes, as it does where the process that holds it has gone."""
    threading.Thread(target=_follow, args=(pipe,), daemon=True).start()


def _follow(pipe: int) -> NoReturn:
    os.read(pipe, 1)
    os._exit(1)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    if not _received:
        ignore()  # a second signal must not cut the way out short
        _received.append(Stopped(number))
        signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS, REPEAT_SECONDS)
    raise _received[0]


def tell_children() -> None:
    """Pass both signals on to all processes below this one, then do what this one has done until now."""
    for number in STATUS:
        if callable(before := signal.getsignal(number)):
            signal.signal(number, partial(_pass_on, before=before))


def _pass_on(number: int, frame: FrameType | None, *, before: Any) -> None:
    threading.Thread(target=_tell, args=(number,), daemon=True).start()
    if number == signal.SIGINT:
        before(number, frame)
    else:
        # Snakemake's handler takes a lock that the code under it may hold.
        threading.Thread(target=before, args=(number, frame)).start()


def _tell(number: int) -> NoReturn:
    """Send the signal once to every process below this one, also to those that are only now started."""
    import psutil

    told: set[psutil.Process] = set()
    while True:
        for child in set(psutil.Process().children(recursive=True)) - told:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)
            told.add(child)
        time.sleep(0.2)
