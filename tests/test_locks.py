"""Locks: two holders exclude each other, and a killed one leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

from moe.locks import exclusive

ROOT = Path(__file__).parents[1]


def child(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


HOLD = """
import sys; from pathlib import Path; from moe.locks import exclusive
with exclusive(Path(sys.argv[1]), waiting="waiting"):
    print("held", flush=True); sys.stdin.read() if sys.argv[2] == "long" else None
"""


def test_a_second_holder_says_that_it_waits_and_goes_on_when_the_first_is_killed(tmp_path: Path):
    lock = tmp_path / "lock"
    with exclusive(lock, waiting=""):
        waiter = child(HOLD, str(lock), "short")
        assert waiter.stderr is not None
        assert waiter.stderr.readline() == "waiting\n"
        assert waiter.poll() is None
    assert waiter.communicate(timeout=20)[0] == "held\n"


JOIN = """
import sys, time; from pathlib import Path; from moe.locks import join_workflow
print(join_workflow(Path(sys.argv[1])), flush=True); time.sleep(float(sys.argv[2]))
"""


def test_locks_of_a_killed_workflow_are_removed_and_those_of_a_living_one_stay(tmp_path: Path):
    stale = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    first = child(JOIN, str(tmp_path), "60")
    assert first.stdout is not None
    assert first.stdout.readline() == "True\n"
    stale.touch()
    assert child(JOIN, str(tmp_path), "0").communicate(timeout=20)[0] == "False\n"
    assert stale.exists()
    first.kill()
    first.communicate()
    assert child(JOIN, str(tmp_path), "0").communicate(timeout=20)[0] == "True\n"
    assert not stale.exists()
