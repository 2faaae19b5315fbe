"""A pipeline that is disturbed at random makes the same files as one that is left alone: the short form of the soak."""

from pathlib import Path

import pytest

from tests.soak.__main__ import soak


def test_six_faults_change_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = soak(tmp_path, faults=6, seed=1, short=True)
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    assert "6 faults, all survived" in said.out
