"""No more jobs run at a time than memory allows, and what can never fit is refused before the first job."""

import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.workflow.project import command, copy_project, environment, run, use_cluster

CALL = ("snakemake", "--config", "scale=smoke")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


def edit(project: Path, **train: int) -> None:
    """Change fields of `train` of the smoke scale."""
    path = project / "config" / "scales" / "smoke.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["train"] |= train
    path.write_text(yaml.safe_dump(raw))


def most_trainings(project: Path, targets: list[str], *args: str) -> int:
    """Make the targets; the most trainings that were seen at the same time."""
    with (project / "log").open("w") as log:
        process = subprocess.Popen(
            command(*CALL, *args, "--cores", "2", "--", *targets),
            cwd=project,
            env=environment(),
            stdout=log,
            stderr=log,
        )
        most = 0
        while process.poll() is None:
            most = max(most, len(trainings(process.pid)))
            time.sleep(0.1)
    assert process.returncode == 0, (project / "log").read_text()
    return most


def trainings(pid: int) -> set[str]:
    """Runs that processes below this one train."""
    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        try:
            line = child.cmdline()
        except psutil.Error:  # it has ended by now
            continue
        if line[1:4] == ["-m", "moe", "train"]:
            found.add(line[line.index("--config") + 1])
    return found


def test_two_trainings_run_side_by_side_where_memory_allows_it_and_else_never(project: Path):
    edit(project, steps=120)
    names = run(project, "moe", "plan", "--scale", "smoke", "--list").stdout.split("\n")
    targets = [f"results/runs/{name}/train.json" for name in names if name.startswith("e8k2-")]
    assert most_trainings(project, targets[:2], "--resources", "mem_mb=900") == 1
    assert most_trainings(project, targets[2:4], "--resources", "mem_mb=1800") == 2


def test_the_memory_of_this_machine_is_the_limit_unless_the_user_gives_one(project: Path):
    limits = []
    for args in ((), ("-j", "2"), ("--resources", "mem_mb=1234")):
        done = run(project, *CALL, *args, "--force", "--", "results/smoke/runs.json")
        assert done.returncode == 0, done.stderr
        limits += map(int, re.findall(r'Provided resources: .*Resource\("mem_mb", (\d+)\)', done.stdout + done.stderr))
    total = psutil.virtual_memory().total // 10**6
    assert 0 < limits[0] < total
    assert 0 < limits[1] < total
    assert limits[2:] == [1234]


def test_a_run_that_can_never_fit_is_refused_in_one_sentence(project: Path):
    edit(project, batch_sequences=4096, sequences_per_pass=4096)
    for args in ((), ("-n",)):
        done = run(project, *CALL, "--resources", "mem_mb=1000", *args)
        assert done.returncode == 1
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert re.search(r"training e8k2-\S+ needs about [\d,]+ MB of memory and this machine has 1,000 MB", error)
        assert "lower train.sequences_per_pass or set train.activation_checkpointing" in error
        assert "Traceback" not in done.stderr
        assert not (project / "results").exists()


def test_jobs_of_a_cluster_ask_its_nodes_for_what_they_need_and_not_for_what_is_here(project: Path):
    # More than any machine has.
    edit(project, batch_sequences=1 << 30, sequences_per_pass=1 << 30)
    use_cluster(project)
    done = run(project, *CALL, "--workflow-profile", "profiles/slurm", "-n")
    assert done.returncode == 0, done.stderr
    asked = [int(mb) for mb in re.findall(r"mem_mb=(\d+)", done.stdout)]
    assert max(asked) * 10**6 > psutil.virtual_memory().total
