"""What Snakemake says before it does anything."""

import re
from pathlib import Path

import pytest

from tests.workflow.project import ROOT, copy_project, jobs, run

SCALES = sorted(path.stem for path in (ROOT / "config" / "scales").glob("*.yaml"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("plan") / "project")


@pytest.mark.parametrize("scale", SCALES)
def test_a_dry_run_of_every_scale_prints_the_jobs_and_the_cost(scale: str, project: Path):
    done = run(project, "snakemake", "-n", "--config", f"scale={scale}")
    assert done.returncode == 0, done.stderr
    assert "Job stats:" in done.stdout + done.stderr
    assert [word for word in ("runs", "tokens", "hours", "memory", "disk") if f"\n  {word} " not in done.stderr] == []


def test_a_call_without_arguments_is_the_cpu_scale(project: Path):
    done = run(project, "snakemake", "-n")
    assert "reports/cpu/index.html" in done.stdout + done.stderr


def add_experiment(project: Path, text: str) -> None:
    """A second experiment of the smoke scale, `second`."""
    (project / "config" / "experiments" / "second.yaml").write_text(f"{{title: t, question: q, prediction: p, {text}}}")
    path = project / "config" / "scales" / "smoke.yaml"
    path.write_text(path.read_text().replace("[balance_window]", "[balance_window, second]"))


def test_all_seeds_of_an_arm_are_one_evaluation_and_the_chosen_experiments_run_alone(tmp_path: Path):
    project = copy_project(tmp_path / "project")
    alone = jobs(run(project, "snakemake", "-n", "--config", "scale=smoke"))
    add_experiment(project, "axes: {w: {field: train.learning_rate, values: [0.001, 0.003, 0.004]}}")
    both = jobs(run(project, "snakemake", "-n", "--config", "scale=smoke"))
    assert (both["train"], both["evaluate"]) == (8 + 2 * 3, 4 + 3)
    chosen = ("snakemake", "-n", "--config", "scale=smoke", "experiments=balance_window")
    assert jobs(run(project, *chosen)) == alone
    done = run(project, *chosen[:-1], "experiments=secnd")
    assert done.returncode == 1
    assert "error: scale smoke lists no experiment 'secnd'; did you mean 'second'?" in done.stderr


def test_a_run_that_switches_is_trained_after_its_parent_and_from_its_state(tmp_path: Path):
    project = copy_project(tmp_path / "project")
    arms = (
        "{w: {arms: {micro: {balance.terms: [{window: 1}]}, "
        "switch: {balance.terms: [{window: 1, end_step: 5}, {start_step: 5}]}}}}"
    )
    add_experiment(project, f"axes: {arms}")
    call = ("snakemake", "-n", "--config", "scale=smoke", "experiments=second")
    done = run(project, *call)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^rule train:\n(.*?)^\[", done.stdout + done.stderr, flags=re.MULTILINE | re.DOTALL)
    runs = dict(zip(re.findall(r"wildcards: run=(\S+)", "".join(printed)), printed, strict=True))
    parents = sorted(name for name, job in runs.items() if "branches=--keep 5" in job)
    children = sorted(name for name, job in runs.items() if "branches=--from " in job)
    assert sorted([*parents, *children]) == sorted(runs)
    assert [name[-3:] for name in parents] == [name[-3:] for name in children] == ["-s1", "-s2"]
    for parent, child in zip(parents, children, strict=True):
        assert f"results/runs/{parent}/train.json" in runs[child].split("output:")[0]
        assert f"--from results/state/{parent}.branches/5" in runs[child]
        assert child not in runs[parent]


def test_the_workflow_is_free_of_lints(project: Path):
    done = run(project, "snakemake", "--lint")
    assert done.returncode == 0, done.stderr


def test_no_rule_scans_the_rows_of_the_plan():
    for path in (ROOT / "workflow").rglob("*.smk"):
        assert "PLAN.rows" not in path.read_text(), path


def test_a_mistake_in_a_scale_is_one_sentence(project: Path):
    path = project / "config" / "scales" / "typo.yaml"
    path.write_text((project / "config" / "scales" / "smoke.yaml").read_text().replace("top_k", "topk"))
    done = run(project, "snakemake", "-n", "--config", "scale=typo")
    path.unlink()
    assert done.returncode == 1
    assert "error: config/scales/typo.yaml: unknown key 'model.topk'; did you mean 'top_k'?" in done.stderr
    assert "Traceback" not in done.stderr
