"""The records that are kept with the code are all that the report reads."""

import json
from pathlib import Path

import pytest

from moe.provenance import write_json
from moe.reference import OF_RUN, copy_records


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
