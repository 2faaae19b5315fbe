"""`moe conformance`: targets, exit status, the page, and the example on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe import cli
from moe.conformance.page import page
from moe.conformance.targets import BUILT_IN, examine, load

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"
LATE = """
from moe.conformance import Adapter

class Late(Adapter):
    not_applicable = {"hybrids": "later"}
"""


def moe(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "moe", *args], cwd=cwd, env=env, capture_output=True, text=True)


def example() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return block


def test_the_page_is_current() -> None:
    targets = {name: load(name) for name in BUILT_IN}
    current = page(targets, {name: examine(target) for name, target in targets.items()})
    said = "run: python -m moe conformance --out docs/conformance.md"
    assert PAGE.read_text(encoding="utf-8") == current, said


def test_without_a_target_all_built_ins_are_shown_and_the_status_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance"]) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [word for word in header if word != "|"] == ["property", *BUILT_IN]
    assert {row[-2] for row in rows} == {"holds", "fails", "n/a"}


def test_the_example_of_the_page_runs_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example())
    done = moe("conformance", "mine.py:Mine", "--out", "page.md", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: mine.py:Mine: 3 of 17 properties do not hold\n"
    failing = re.findall(r"^\| (.*?) +\| fails", done.stdout, flags=re.MULTILINE)
    assert failing == ["uneven split", "uneven padding", "f is pooled over accumulation steps"]
    assert "value 2.156 instead of 1.173" in done.stdout
    assert "n/a" in done.stdout and "there is one loss only" in done.stdout
    assert "My framework 1.2" in (tmp_path / "page.md").read_text()


def test_a_target_may_be_a_module_of_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(example())
    assert "3 of 17 properties" in moe("conformance", "package.module:Mine", cwd=tmp_path).stderr


def test_a_target_for_which_all_holds_has_the_status_0() -> None:
    assert cli.main(["conformance", "ours"]) == 0


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("megatrn", "did you mean 'megatron'?"),
        ("torchtitan-like", "built-ins are ours, transformers, megatron, prefix"),
        ("mine.py", "is no built-in, package.module:name or path/to/file.py:name"),
        ("mine.py:", "is no built-in"),
        ("absent.py:Mine", "absent.py: cannot be imported (FileNotFoundError"),
        ("no.such.module:Mine", "no.such.module: cannot be imported (ModuleNotFoundError"),
        ("broken.py:Mine", "broken.py: cannot be imported (SyntaxError"),
        ("late.py:Mine", "'Mine' is not there; its adapters are: Late"),
        ("moe.cli:FILE", "'FILE' is not a subclass of moe.conformance.Adapter; its adapters are: none"),
        ("late.py:Late", "not_applicable names 'hybrids'; properties are uniform, "),
    ],
)
def test_any_other_target_is_refused_in_one_sentence(
    target: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late.py").write_text(LATE)
    (tmp_path / "broken.py").write_text("def")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["conformance", target, "--out", "page.md"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert sentence in err
    assert not (tmp_path / "page.md").exists()


def test_what_an_implementation_raises_is_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(example().replace("step, losses = self.step, []", 'raise NotImplementedError("not\\nyet")'))
    assert cli.main(["conformance", f"{path}:Mine"]) == 1
    out, err = capsys.readouterr()
    assert "uniform routing scores 1: raises NotImplementedError: not yet" in out
    assert "16 of 17 properties do not hold" in err
