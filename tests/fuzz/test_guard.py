"""The guard of the fuzz tests sees what it is there for."""

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe.settings import ConfigError
from tests.fuzz import guard
from tests.fuzz.guard import Hang, outcome


def raised(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "act",
    [
        lambda path: path.write_text("x"),
        lambda path: path.mkdir(),
        lambda path: os.open(path, os.O_CREAT),
        lambda path: Path(__file__).rename(path),
        lambda path: path.unlink(),
        lambda path: os.system("true"),
        lambda path: subprocess.run(["true"]),
        lambda path: pickle.loads(pickle.dumps(os.getcwd)),
    ],
)
def test_what_a_call_does_outside_its_folder_is_seen_even_if_it_hides_the_error(
    act: Callable[[Path], Any], tmp_path: Path
) -> None:
    def call() -> None:
        try:
            act(tmp_path / "x")
        except Exception:
            raise ConfigError("hidden") from None

    with pytest.raises(AssertionError):
        outcome(call, writes=tmp_path / "inside")
    assert not list(tmp_path.iterdir())


def test_a_call_may_write_in_its_folder_and_read_anywhere(tmp_path: Path) -> None:
    assert outcome(lambda: (tmp_path / "x").write_text("x"), writes=tmp_path) == 1
    assert outcome((tmp_path / "x").read_text) == "x"


def test_other_errors_and_endless_calls_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.1)

    def endless() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    for call, error in ((endless, Hang), (lambda: raised(KeyError()), KeyError)):
        with pytest.raises(error):
            outcome(call)
    with pytest.raises(AssertionError):
        outcome(lambda: raised(ConfigError(" ")))
    assert outcome(lambda: raised(ConfigError("one sentence"))) is None
