"""What the benchmark of large grids says of its samples."""

from benchmarks import grid_size


def test_one_more_run_costs_the_extra_seconds_over_the_extra_runs():
    def size(runs: int, *seconds: float) -> dict:
        return {"runs": runs, "steps": {str(s): {"seconds": s, "cpu_seconds": s / 2} for s in seconds}}

    record = {"target_seconds": 60, "planning": [size(1_000, 5.0), size(10_000, 41.0)]}
    lines = grid_size.text(record | {"report": [size(100, 1.0, 2.0), size(1_000, 10.0, 11.0)]}).splitlines()
    assert "10,000    41.0 s    20.5 s    < 60 s" in lines[2]
    assert lines[3].endswith(" 4.0 ms")
    assert "1,000    21.0 s    10.5 s    < 60 s" in lines[5]
    assert lines[6].endswith(" 20.0 ms")
