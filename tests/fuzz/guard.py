"""A call under guard gives a result or a `ConfigError` of one line, soon, and touches nothing outside its folder."""

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import currently_in_test_context, event, settings

from moe.settings import SENTENCE_CHARACTERS, ConfigError

SECONDS = 20
"""A call that takes longer hangs: the tests' inputs are small."""


def examples(factor: int) -> settings:
    """`factor` times as many examples as usual; `pytest tests/fuzz --hypothesis-profile=long` runs 20 times as many."""
    return settings(max_examples=factor * settings.default.max_examples, deadline=timedelta(seconds=SECONDS))


_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_NEVER = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
}
_CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

sys.dont_write_bytecode = True  # what is imported late

_guarded: list[Path | None] = []  # the folder that the present call may write in
_seen: list[str] = []


class Hang(BaseException):
    """The call took too long; no `except Exception` of the call may swallow it."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _guarded:
        return
    written = args[:2] if event == "os.rename" else args[:1] if event in _WRITES else ()
    if event in ("os.remove", "os.rmdir") and args[1] != -1:
        written = ()  # a name in a folder that rmtree was allowed to remove
    if event == "open" and isinstance(args[2], int) and args[2] & _CREATES:
        written = args[:1]
    if event in _NEVER or any(not _inside(path) for path in written):
        _seen.append(f"{event} {args!r:.200}")
        raise PermissionError(event)


def _inside(path: Any) -> bool:
    folder = _guarded[0]
    return isinstance(path, int) or (
        folder is not None and Path(os.path.abspath(os.fsdecode(path))).is_relative_to(folder)
    )


def _count(end: str) -> None:
    """For `--hypothesis-show-statistics`."""
    if currently_in_test_context():
        event(end)


def _stop(*_: Any) -> None:
    raise Hang


sys.addaudithook(_audit)  # it cannot be taken away again, so it sleeps outside of calls


def outcome(call: Callable[[], Any], writes: Path | None = None) -> Any:
    """What `call` returns, or None where it refuses its input with one sentence; it may write below `writes` alone."""
    old = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _guarded.append(writes)
    try:
        result = call()
        _count("accepted")
        return result
    except ConfigError as error:
        _count("refused")
        sentence = str(error)
        assert sentence.strip()
        assert sentence.isprintable()  # and so one line
        assert len(sentence) <= SENTENCE_CHARACTERS
        return None
    finally:
        _guarded.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        seen = list(_seen)
        _seen.clear()
        assert not seen
