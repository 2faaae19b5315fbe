"""What the text says of steps whose cost is known."""

from benchmarks import balance


def part(**milliseconds: list[float]) -> dict:
    """The same wall and CPU seconds."""
    seconds = {name: [value / 1e3 for value in values] for name, values in milliseconds.items()}
    return {"seconds": seconds, "cpu_seconds": seconds}


def test_steps_are_compared_with_their_neighbours_and_exact_with_its_counting_passes() -> None:
    # A machine that slows down to half its speed: ratios of neighbours do not see it.
    slow = [100.0, 100.0, 200.0, 200.0]
    record = {
        "targets": balance.TARGETS,
        "terms": part(**{"without balance": slow, "one global term": [1.01 * value for value in slow]}),
        "estimators": part(exact=[1.2 * value for value in slow], prefix=slow, counting=[0.25 * v for v in slow]),
        "ranks": part(**{"global": [1.005 * value for value in slow], "local": slow})
        | {"bytes": {"global": 512, "local": 0, "gradient": 4_000_000}},
    }
    _, plain, term, exact, counting, excess, ranks, sent = balance.text(record).splitlines()
    assert "150.0" in plain and plain.count("1.000 [1.000 1.000]") == 2
    assert "151.5" in term and term.count("1.010 [1.010 1.010]") == 2 and term.endswith("<= 1.02")
    assert exact.count("1.200 [1.200 1.200]") == 2 and counting.count("0.250 [0.250 0.250]") == 2
    assert excess.count("0.800 [0.800 0.800]") == 2 and excess.endswith("<= 1.0")
    assert ranks.count("1.005 [1.005 1.005]") == 2 and "<= 1.01" in ranks
    assert "512 of counts, 4,000,000 of gradients" in sent
