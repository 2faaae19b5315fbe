"""The peak of a command is its own."""

import sys

import pytest

from benchmarks.peak import peak_of

MB = 10**6


def test_the_peak_is_that_of_the_command_and_not_of_the_process_that_asks() -> None:
    held = b"1" * (400 * MB)
    small, large = (peak_of([sys.executable, "-c", f"len(b'1' * {size})"]) for size in (1, 200 * MB))
    assert small < 100 * MB < len(held)
    assert small + 190 * MB < large < small + 210 * MB


def test_a_command_that_fails_is_heard() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        peak_of([sys.executable, "-c", "raise SystemExit('no such thing')"])
