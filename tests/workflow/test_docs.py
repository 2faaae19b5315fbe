"""What the README and the guides tell a user to do works as written."""

import re
from pathlib import Path

import pytest
import yaml

from tests.workflow.project import ROOT, copy_project, jobs, run


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks of one language; a block may be indented, as inside a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return ["".join(line[len(indent) :] for line in text.splitlines(keepends=True)) for indent, text in found]


def test_every_make_target_of_the_readme_exists() -> None:
    commands = [line for block in blocks(ROOT / "README.md", "") for line in block.splitlines()]
    targets = {line.split()[1] for line in commands if line.startswith("make ")}
    assert {"reproduce", "test", "figures"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)] == []


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_finding_of_the_readme_is_what_its_command_prints() -> None:
    readme = " ".join((ROOT / "README.md").read_text().replace("\n> ", " ").split())
    command = next(part for part in readme.split("`") if part.startswith("python -m moe headline"))
    done = run(ROOT, *command.split()[2:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in readme


def test_the_readme_lists_what_became_of_every_prediction_that_the_paper_has_a_value_for() -> None:
    def rows(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if line.startswith("| ")]

    heading, rule, *predictions = rows(ROOT / "results" / "reference" / "cpu" / "tables" / "predictions.md")
    expected = [heading, rule, *(line for line in predictions if not line.endswith("| – |"))]
    assert len(expected) > 2
    readme = rows(ROOT / "README.md")
    start = readme.index(heading)
    assert readme[start : start + len(expected)] == expected
    assert f"all {len(predictions)} predictions" in " ".join((ROOT / "README.md").read_text().split())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


def test_the_axis_of_the_guide_adds_its_runs_and_shares_those_that_exist(project: Path) -> None:
    experiment, listed, *_ = blocks(ROOT / "docs" / "add-an-axis.md", "yaml")
    before = run(project, "moe", "plan", "--list").stdout.split("\n")
    (project / "config" / "experiments" / "z_loss.yaml").write_text(experiment)
    scale = project / "config" / "scales" / "cpu.yaml"
    *_, added = listed.strip().split("\n")
    first = "  - balance_window\n"
    assert first in scale.read_text() and first in listed
    edited = scale.read_text().replace(first, f"{first}{added}\n")
    scale.write_text(edited)
    done = run(project, "moe", "plan", "--list")
    assert done.returncode == 0, done.stderr
    seeds = len(yaml.safe_load(edited)["seeds"])
    names = [{line for line in text if re.match(r"e\d+k\d+-", line)} for text in (before, done.stdout.split("\n"))]
    assert names[0] < names[1]
    arms = len(yaml.safe_load(experiment)["axes"]["window"]["values"]) * 3
    shared = 2  # the arms at the headline's weight
    assert len(names[1]) - len(names[0]) == (arms - shared) * seeds
    planned = run(project, "snakemake", "-n")
    assert jobs(planned)["train"] == len(names[1])


def test_a_user_s_own_text_as_in_the_readme_is_a_valid_domain(project: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "yaml")
    domains = yaml.safe_load(block.replace("<commit>", "a" * 40))["data"]["domains"]
    scale = project / "config" / "scales" / "smoke.yaml"
    raw = yaml.safe_load(scale.read_text())
    raw["data"]["domains"] = domains
    scale.write_text(yaml.safe_dump(raw))
    assert run(project, "moe", "plan", "--scale", "smoke").returncode == 0
