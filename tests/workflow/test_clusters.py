"""What a cluster is asked for, by a dry run with the profile for SLURM."""

import re
import time
from pathlib import Path

import pytest

from tests.workflow.project import copy_project, run, use_cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = copy_project(tmp_path_factory.mktemp("clusters") / "project")
    use_cluster(path)
    return path


def jobs_of(rule: str, text: str) -> list[str]:
    """What a dry run with -p says of each job of a rule."""
    return re.findall(rf"^rule {rule}:\n(.*?)(?=^rule |^localrule |^Job stats)", text, flags=re.MULTILINE | re.DOTALL)


def dry_run(project: Path, scale: str, *args: str) -> str:
    done = run(project, "snakemake", "-n", "-p", "--workflow-profile", "profiles/slurm", "--config", scale, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "scale, machines, gigabytes", [("paper-3b", 4, 70), ("paper-15b", 8, 200), ("paper-43b", 8, 500)]
)
def test_a_paper_scale_is_planned_in_seconds_with_one_job_on_many_machines_per_training(
    scale: str, machines: int, gigabytes: int, project: Path
):
    began = time.monotonic()
    text = dry_run(project, f"scale={scale}")
    assert time.monotonic() - began < 60
    trainings = jobs_of("train", text)
    assert len(trainings) >= 12
    for job in trainings:
        assert f"nodes={machines}, tasks={machines}, mpi=srun" in job
        assert "gres=gpu:8" in job
        assert "python -m moe train --config results/runs/" in job
        assert int(re.findall(r"mem_mb=(\d+)", job)[0]) > gigabytes * 1000
    assert "GPU-hours in all (estimated)" in text
    # What runs in one process on one GPU is left out.
    assert jobs_of("latency", text) == jobs_of("estimators", text) == []
    assert len(jobs_of("evaluate", text)) >= 4


def test_a_scale_of_one_gpu_asks_for_it_and_one_of_cpus_does_not(project: Path):
    text = dry_run(project, "scale=gpu")
    for rule in ("train", "latency", "estimators"):
        assert all("gres=gpu:1" in job and "nodes=" not in job for job in jobs_of(rule, text)), rule
        assert jobs_of(rule, text)
    assert all("gres" not in job for job in jobs_of("evaluate", text))
    text = dry_run(project, "scale=cpu")
    assert "gres" not in text and "nodes=" not in text and "GPU" not in text


def test_a_users_own_resources_are_kept(project: Path):
    text = dry_run(project, "scale=gpu", "--set-resources", "train:gres=gpu:h100:1", "train:slurm_partition=long")
    assert all("gres=gpu:h100:1" in job and "slurm_partition=long" in job for job in jobs_of("train", text))
