"""Estimators are compared on a real run; an interruption leaves no trace in what is found."""

import json
from pathlib import Path

import pytest
import torch

from moe.balance.estimators import Pooling
from moe.config import RunConfig
from moe.estimators import Candidate, _errors, measure
from moe.model.build import routers
from moe.scale import EstimatorsConfig, HardwareConfig
from tests import exactness
from tests.conftest import tiny_config
from tests.stage import stop_before

SETTINGS = EstimatorsConfig(passes=(2, 5, 12), half_lives=(2.0,), every=4, repeats=2)


def observe(config: RunConfig, packed: Path, folder: Path) -> dict:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    (folder / "run" / "config.json").write_text(config.model_dump_json())
    measure(
        run_folder=folder / "run",
        data_folder=packed,
        state_folder=folder / "state",
        settings=SETTINGS,
        hardware=HardwareConfig(),
        out=folder / "estimators.json",
    )
    return json.loads((folder / "estimators.json").read_text())


def test_every_estimator_is_compared_at_every_depth_that_divides_the_batch(tiny_data, tmp_path: Path) -> None:
    data, packed = tiny_data
    record = observe(tiny_config(data), packed, tmp_path)
    found = {(row["estimator"], row["passes"]) for row in record["gradients"]}
    expected = {(name, passes) for name in ("pass", "prefix") for passes in (2, 12)}
    assert found == expected | {("previous", None), ("ema 2", None)}
    assert {(row["step"], row["layer"]) for row in record["gradients"]} == {(s, i) for s in (4, 8, 12) for i in (0, 1)}
    for row in record["gradients"]:
        assert -1 <= row["cosine"] <= 1 and row["relative_error"] > 0
        # |g - e|² = |g|² + |e|² - 2 |g| |e| cos is smallest, over |g|, where it is the sine.
        assert row["relative_error"] >= (1 - row["cosine"] ** 2) ** 0.5 - 1e-6
    timed = {(row["estimator"], row["passes"]): row["seconds"] for row in record["step_seconds"]}
    assert timed.keys() == {(name, n) for name in ("exact", "prefix", "previous") for n in (1, 2, 12)}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in timed.values())
    assert not (tmp_path / "state").exists()


def test_the_comparison_is_of_learned_dropless_routing_also_on_a_run_without(tiny_data, tmp_path: Path) -> None:
    data, packed = tiny_data
    terms = [{"window": 12, "weight": 0.05}]
    forced = {"terms": terms, "forced": True, "capacity": {"window": 2}}
    records = [
        observe(tiny_config(data, balance=balance), packed, tmp_path / str(i))
        for i, balance in enumerate(({"terms": terms}, forced))
    ]
    assert records[0]["gradients"] == records[1]["gradients"]


def test_an_interrupted_comparison_continues_to_the_same_numbers(
    tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, packed = tiny_data
    config = tiny_config(data)
    whole = observe(config, packed, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(9, KeyboardInterrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            observe(config, packed, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "estimators.json").exists()
    assert observe(config, packed, tmp_path / "resumed")["gradients"] == whole["gradients"]


def test_the_error_is_that_of_the_gradients_that_training_would_take() -> None:
    config = exactness.run_config([{"window": 12, "weight": 1.0}])
    tokens, mask = exactness.batch(0, padded=False)
    candidates = [Candidate("exact", 1, Pooling(12)), Candidate("prefix", 3, Pooling(12, "prefix"))]
    objective = exactness.fresh_objective(config, torch.float64)
    found = _errors(objective, torch.from_numpy(tokens), candidates, {})
    gradients = {}
    for estimator in ("exact", "prefix"):
        for weight in (0.0, 1.0):
            terms = [{"window": 12, "weight": weight, "estimator": estimator}]
            _, gradients[estimator, weight] = exactness.split_batch(
                exactness.run_config(terms), tokens, None, sizes=((4,), (4,), (4,)), dtype=torch.float64
            )
    for layer in range(len(routers(objective.model))):
        name = f"model.layers.{layer}.mlp.gate.weight"
        exact, prefix = (gradients[e, 1.0][name] - gradients[e, 0.0][name] for e in ("exact", "prefix"))
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), prefix.flatten(), dim=0)
        # Differences of gradients of the whole objective lose some digits.
        assert float(found[layer, 1, 0]) == pytest.approx(float(cosine), rel=1e-6)
        assert float(found[layer, 1, 1]) == pytest.approx(float((prefix - exact).norm() / exact.norm()), rel=1e-6)
