"""What Snakemake says before it does anything."""

from pathlib import Path

import pytest

from tests.workflow.project import ROOT, copy_project, run

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
