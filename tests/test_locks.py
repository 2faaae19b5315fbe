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


COUNT = """
import sys; from pathlib import Path; from moe.locks import exclusive
folder = Path(sys.argv[1])
for _ in range(100):
    with exclusive(folder / "lock", waiting=""):
        count = int((folder / "count").read_text())
        (folder / "count").write_text(str(count + 1))
"""


def test_the_lock_file_goes_with_the_lock_and_still_excludes_those_that_wait(tmp_path: Path):
    (tmp_path / "count").write_text("0")
    counters = [child(COUNT, str(tmp_path)) for _ in range(4)]
    assert [counter.communicate(timeout=60) and counter.returncode for counter in counters] == [0] * 4
    assert (tmp_path / "count").read_text() == "400"
    assert not (tmp_path / "lock").exists()


INHERIT = """
import subprocess, sys; from pathlib import Path; from moe.locks import exclusive
with exclusive(Path(sys.argv[1]), waiting="") as (held, _):
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[held], stdin=sys.stdin)
    print("held", flush=True); child.wait()
"""


def test_a_child_process_that_inherits_a_lock_holds_it_when_its_parent_is_killed(tmp_path: Path):
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", INHERIT, str(lock)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    waiter = child(HOLD, str(lock), "short")
    assert waiter.stderr is not None
    assert waiter.stderr.readline() == "waiting\n"
    assert waiter.poll() is None
    holder.stdin.close()  # the child reads to its end
    assert waiter.communicate(timeout=20)[0] == "held\n"
