"""The whole pipeline at the smoke scale, from download to report, and what a second call does."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.workflow.project import copy_project, jobs, run

CALL = ("snakemake", "--config", "scale=smoke")
REDRAWN = {"runs_table", "tables", "figures", "report_page", "all"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = copy_project(tmp_path_factory.mktemp("smoke") / "project")
    done = run(project, *CALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """The finished project, to be edited."""
    target = tmp_path / "project"
    shutil.copytree(finished, target)  # keeps modification times
    return target


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_the_report_is_one_page_that_needs_no_network(finished: Path):
    page = (finished / "reports" / "smoke" / "index.html").read_text(encoding="utf-8")
    assert "Balance window" in page
    assert 'src="http' not in page
    assert '<link rel="stylesheet"' not in page


def test_every_run_has_its_records_and_no_state_is_left(finished: Path):
    runs = sorted((finished / "results" / "runs").iterdir())
    assert len(runs) == 8
    for folder in runs:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names == {
            "config.json",
            "model",
            "train.json",
            "train.jsonl",
            "speed.jsonl",
            "counts.parquet",
            "evaluation.json",
            "routing.parquet",
        }


def test_the_headline_is_printed_from_the_records(finished: Path):
    done = run(finished, "moe", "headline", "--records", "results/smoke/runs.json")
    assert done.returncode == 0, done.stderr
    assert "hybrid" in done.stdout


def test_a_second_call_has_nothing_to_do(finished: Path):
    done = run(finished, *CALL)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_comment_in_the_configuration_changes_nothing(project: Path):
    for path in (project / "config").rglob("*.yaml"):
        path.write_text("# a comment\n" + path.read_text())
    assert jobs(run(project, *CALL, "-n")) == {}


def test_one_more_arm_trains_exactly_its_own_runs(project: Path):
    edit(
        project / "config" / "experiments" / "balance_window.yaml",
        "      global:\n",
        "      2 sequences:\n        balance.terms: [{window: 2, weight: 0.01}]\n      global:\n",
    )
    made = jobs(run(project, *CALL, "-n"))
    assert made == dict.fromkeys(("run_config", "train"), 2) | dict.fromkeys(REDRAWN | {"latency", "evaluate"}, 1)


def test_a_text_of_the_report_redraws_it_and_trains_nothing(project: Path):
    edit(project / "config" / "experiments" / "balance_window.yaml", "title: Balance window", "title: Windows")
    assert set(jobs(run(project, *CALL, "-n"))) == REDRAWN


def test_how_the_machine_is_used_trains_nothing(project: Path):
    path = project / "config" / "scales" / "smoke.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["hardware"] |= {"tokens_per_second": 3000, "log_every": 2}
    path.write_text(yaml.safe_dump(raw))
    assert set(jobs(run(project, *CALL, "-n"))) == REDRAWN


def test_other_evaluation_settings_evaluate_again_and_train_nothing(project: Path):
    edit(project / "config" / "scales" / "smoke.yaml", "arc_easy: 5", "arc_easy: 6")
    assert set(jobs(run(project, *CALL, "-n"))) == REDRAWN | {"fetch_sets", "evaluate"}


def test_snakemakes_own_report_holds_the_figures(finished: Path):
    done = run(finished, *CALL, "--report", "report.html")
    assert done.returncode == 0, done.stderr
    assert "balance_window" in (finished / "report.html").read_text(encoding="utf-8")
