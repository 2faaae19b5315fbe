"""The command line: quick where nothing is computed, and one sentence where the user or the machine is at fault."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe import cli, cost
from moe.config import RunConfig
from moe.data.wheels import cache_folder
from moe.provenance import write_json
from moe.settings import ConfigError

DATA = {"domains": [{"name": "law", "source": {"corpus": "china-law"}}]}


def moe(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "moe", *args], cwd=cwd or root, env={"PYTHONPATH": root}, capture_output=True, text=True
    )


def test_help_and_plan_load_no_heavy_package():
    code = (
        "import sys; from moe.cli import main; main(['plan', '--scale', 'smoke']);"
        "sys.exit(bool({'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_compiled_layers_are_kept_in_the_cache_folder_whatever_a_library_chooses_while_it_is_loaded(tmp_path: Path):
    code = (
        "import os; from moe.cli import main; main(['plan', '--scale', 'smoke']); import moe.train;"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment | {"MOE_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == str(tmp_path / "compiled"), done.stderr


def test_a_user_without_a_home_folder_can_plan(monkeypatch: pytest.MonkeyPatch):
    for name in ("HOME", "MOE_CACHE", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as for a number that no user has
    with pytest.raises(ConfigError, match="no home folder for downloads: set MOE_CACHE"):
        cache_folder()
    assert cli.main(["plan", "--scale", "smoke"]) == 0


@pytest.mark.parametrize("stage", [stage.__name__ for stage in cli.STAGES])
def test_every_stage_explains_itself(stage: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        cli.main([stage, "--help"])
    assert exit.value.code == 0
    assert f"usage: moe {stage}" in capsys.readouterr().out


def test_the_plan_says_runs_tokens_hours_and_disk():
    done = moe("plan", "--scale", "smoke", "--list")
    assert done.returncode == 0, done.stderr
    assert [word for word in ("runs", "tokens", "hours", "disk") if f"\n  {word} " not in done.stdout] == []
    assert "e8k2-w8-" in done.stdout


def test_a_mistake_of_the_user_is_one_sentence_and_exit_status_1(tmp_path: Path):
    for args in (("plan", "--scale", "smokee"), ("config", "--kind", "run", "--json", "{", "--out", "x")):
        done = moe(*args)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_config_writes_every_field_of_the_run(tmp_path: Path):
    out = tmp_path / "run" / "config.json"
    assert cli.main(["config", "--kind", "run", "--json", json.dumps({"data": DATA}), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == RunConfig.model_validate({"data": DATA}).model_dump(mode="json")


def test_a_runs_table_of_an_edited_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["runs", "--scale", "smoke", "--digest", "stale", "--out", str(tmp_path / "runs.json")]) == 1
    assert "edited after the plan was made" in capsys.readouterr().err
    assert not (tmp_path / "runs.json").exists()


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 1, "no space left on a.bin: free space and run"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin", None, "b.bin"), 1, "no space left on b.bin: free"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.bin"), 1, "no space left on a.bin: free space and run"),
        (RuntimeError("IoError: No space left on device (os error 28)"), 1, "no space left on"),
        (PermissionError(errno.EACCES, "Permission denied", "a.bin"), 1, "a.bin: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_fault_of_the_machine_is_one_sentence(
    error: BaseException,
    status: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cost, "estimate", fail)
    assert cli.main(["plan", "--scale", "smoke"]) == status
    stderr = capsys.readouterr().err
    assert sentence in stderr
    assert stderr.count("\n") == 1


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cost, "estimate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan", "--scale", "smoke"])


def test_reference_copies_nothing_if_a_record_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_json(tmp_path / "runs.json", {"runs": [{"run": "a"}]})
    args = ["--records", str(tmp_path / "runs.json"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert cli.main(["reference", *args]) == 1
    assert "missing; run the scale first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
