"""`python -m benchmarks` runs what it is asked for."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.__main__ import main


def test_an_unknown_part_is_one_sentence_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "packing", "trainign", "--out", str(tmp_path)])
    assert main() == 1
    names = "training, balance, start, packing, memory, grid_size, levers"
    assert capsys.readouterr() == ("", f"error: unknown part 'trainign'; the parts are {names}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_printed_and_kept_with_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = ModuleType("benchmarks.balance")
    part.measure = lambda: {"ratio": 2.0}
    part.text = lambda record: f"twice: {record['ratio']}"
    monkeypatch.setitem(sys.modules, "benchmarks.balance", part)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "balance", "--out", str(tmp_path / "out")])
    assert main() == 0
    assert "twice: 2.0" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "balance.json").read_text())
    assert (record["schema"], record["part"], record["measured"]) == ("moe-benchmark/1", "balance", {"ratio": 2.0})
    assert {"device", "versions", "code", "seconds"} <= set(record)
