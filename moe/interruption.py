"""How a process ends when it is told to: by Ctrl-C (SIGINT), or by SIGTERM, which schedulers send before they kill.

Both raise an exception wherever a stage is, so that temporary files go on the way out. Training defers SIGTERM to the
end of its step, and Snakemake tells its jobs.
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

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, the one that shells use."""

TERMINATED = os.EX_TEMPFAIL
"""Exit status after SIGTERM (75): nothing is wrong, and the same command continues."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM has come; as `KeyboardInterrupt`, it is no `Exception`."""


class Deferred:
    """From now on SIGTERM only sets `requested`, for a loop that stops where its state is whole."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def obey() -> None:
    """Raise `KeyboardInterrupt` at SIGINT and `Terminated` at SIGTERM, also at one that was held back until now."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore() -> None:
    """Let neither signal end this process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Both signals come after the block; child processes that it starts get them once they `obey`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def number(stop: BaseException) -> signal.Signals:
    """The signal that has raised `stop`."""
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


def report(stop: BaseException) -> int:
    """Say in one sentence what has ended the process; its exit status."""
    terminated = number(stop) == signal.SIGTERM
    what = str(stop) or ("terminated" if terminated else "interrupted")
    print(f"error: {what}; run the same command again to continue", file=sys.stderr)
    return TERMINATED if terminated else INTERRUPTED


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    ignore()  # a second signal must not cut the way out short
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def tell_children() -> None:
    """Pass both signals on to all processes below this one, then do what this one has done until now."""
    for number in SIGNALS:
        signal.signal(number, partial(_pass_on, before=signal.getsignal(number)))


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
