"""The records that are kept with the code are all that the report reads."""

import json
from pathlib import Path

import pytest

from moe.provenance import write_json
from moe.reference import OF_RUN, copy_records
from moe.report.tables import write_tables
from moe.settings import ConfigError
from tests.report.synthetic import write_records


@pytest.mark.parametrize("with_estimators", [True, False])
def test_the_records_of_scale_and_runs_are_copied_and_nothing_else(tmp_path: Path, with_estimators: bool) -> None:
    scale, runs = tmp_path / "cpu", tmp_path / "runs"
    of_scale = ["runs.json", "latency.json", *(["estimators.json"] if with_estimators else [])]
    for name in of_scale:
        write_json(scale / name, {"runs": [{"run": "a"}]})
    for run in ("a", "other"):
        for name in (*OF_RUN, "model/model.safetensors"):
            write_json(runs / run / name, {})
    copy_records(scale / "runs.json", runs, tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {*of_scale, *(f"runs/a/{name}" for name in OF_RUN)}
    assert json.loads((tmp_path / "out" / "runs.json").read_text()) == {"runs": [{"run": "a"}]}


def test_an_evaluation_is_kept_without_the_settings_of_the_tasks_and_gives_the_same_tables(tmp_path: Path) -> None:
    table, runs = write_records(tmp_path / "whole", seeds=(1,))
    records = sorted(runs.glob("*/evaluation.json"))
    for path in records:
        record = json.loads(path.read_text())
        record["lm_eval"]["configs"] = {"piqa": {"doc_to_text": "Question: {{goal}}"}}
        write_json(path, record)
    whole = {path: path.read_bytes() for path in runs.parent.rglob("*") if path.is_file()}
    copy_records(table, runs, tmp_path / "kept")
    assert {path: path.read_bytes() for path in whole} == whole
    for path, copy in ((path, tmp_path / "kept" / path.relative_to(runs.parent)) for path in whole):
        if path in records:
            record = json.loads(path.read_text())
            del record["lm_eval"]["configs"]
            assert json.loads(copy.read_text()) == record
        else:
            assert copy.read_bytes() == whole[path]
    for root in (tmp_path / "whole", tmp_path / "kept"):
        write_tables(root / "runs.json", root / "runs", root / "tables")
    files = sorted(path.name for path in (tmp_path / "whole" / "tables").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "kept" / "tables").iterdir())
    for name in files:
        kept, drawn = ((tmp_path / root / "tables" / name).read_bytes() for root in ("kept", "whole"))
        assert kept == drawn, name


def test_an_evaluation_without_tasks_is_kept_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    table, runs = write_records(tmp_path / "whole", seeds=(1,), tasks=False)
    copy_records(table, runs, tmp_path / "kept")
    path = min(runs.glob("*/evaluation.json"))
    assert (tmp_path / "kept" / path.relative_to(runs.parent)).read_bytes() == path.read_bytes()
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"evaluation\.json: not valid JSON; delete it"):
        copy_records(table, runs, tmp_path / "other")
    assert not (tmp_path / "other").exists()
