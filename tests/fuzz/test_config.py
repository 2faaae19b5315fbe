"""Whatever stands in a configuration file, it is a plan or one sentence."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from moe.config import RunConfig
from moe.cost import describe, estimate
from moe.lm_eval_tasks.official import check_names
from moe.scale import Experiment, Scale
from moe.settings import ConfigError, canonical_json, parse, read_json, read_yaml
from moe.sweep import Plan, load_plan, resolve
from tests.fuzz.guard import examples, outcome
from tests.fuzz.inputs import JUNK, TEXT, WORDS, mutated

CONFIG = Path(__file__).parents[2] / "config"
SCALE = yaml.safe_load((CONFIG / "scales" / "smoke.yaml").read_text())
EXPERIMENT = yaml.safe_load((CONFIG / "experiments" / "balance_window.yaml").read_text())
AXES = {
    "rate": {"field": "train.learning_rate", "values": [1e-3, 2e-3]},
    "arms": {"arms": {"a": {"model.top_k": 1}, "b": {"balance.terms": [], "train.steps": 30}}},
}
RUN = RunConfig.model_validate({key: SCALE[key] for key in ("model", "data", "train")}).model_dump(mode="json")
TOKENS = st.sampled_from([
    "a:", "b: ", "- ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", "? ", ": ", "&x ", "*x", "&y ", "*y", "<<: ",
    "<<: *x", "!!python/object/apply:os.system ", "!!python/name:os ", "!!binary ", "!!set ", "!!omap ", "!!timestamp ",
    "!!float ", "!!int ", "!!merge ", "!a ", "---\n", "...\n", "%TAG ! x\n", "%YAML 1.1\n", "#", '"', "'", "|\n", ">\n",
    " ", "-\n", "\\0", "\\ud800", "@", "`", "\t", "1", "0x" + "f" * 5000, "1:2", "1:" * 400 + "1.5", "0b_", ".nan", "~",
    "description: ", "experiments: [e]", "seeds: [1]", "data: ", "axes: ", "\ufeff", "\x85", "\u2028", "x" * 200, "=",
    "&x [*x, *x]", "[" * 1200, "{a: " * 200, "2001-01-01", "2001-99-99",
])  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of configurations in which the scale `s` lists the experiment `e`."""
    root = tmp_path_factory.mktemp("config")
    for kind in ("scales", "experiments"):
        (root / kind).mkdir()
    with pytest.raises(ConfigError):  # lm-eval is imported once, before anything is watched or timed
        check_names(["no such task"], "hub")
    return root


def write(folder: Path, scale: Any, experiment: Any) -> None:
    """The two files; what is not bytes is written as YAML."""
    for path, content in (("scales/s.yaml", scale), ("experiments/e.yaml", experiment)):
        written = content if isinstance(content, bytes) else yaml.safe_dump(content, sort_keys=False).encode()
        (folder / path).write_bytes(written)


def check(plan: Plan | None) -> None:
    """What the workflow does with a plan works for every plan."""
    if plan is None:
        return
    json.dumps(plan.record(), allow_nan=False, ensure_ascii=False).encode()
    assert re.fullmatch("[0-9a-f]{12}", plan.digest())
    describe(plan, estimate(plan, cores=2, memory_mb=2000)).encode()
    assert {row.run for row in plan.rows} == set(plan.configs)
    for name, config in plan.configs.items():
        assert re.fullmatch(r"[a-z0-9.+-]{1,200}", name)
        assert RunConfig.model_validate_json(canonical_json(config)) == config


YAML = (
    st.binary(max_size=60)
    | st.lists(TOKENS, max_size=25).map("".join).map(str.encode)
    | TEXT.map(partial(str.encode, errors="surrogatepass"))
)


@examples(2)
@given(kind=st.sampled_from(["scale", "experiment"]), content=YAML)
def test_any_bytes_are_no_plan_but_one_sentence(folder: Path, kind: str, content: bytes) -> None:
    write(folder, *((content, EXPERIMENT) if kind == "scale" else (SCALE | {"experiments": ["e"]}, content)))
    assert outcome(lambda: load_plan("s", folder)) is None


@examples(2)
@given(scale=mutated(SCALE | {"experiments": ["e"]}), experiment=st.just(EXPERIMENT) | mutated(EXPERIMENT))
def test_a_scale_with_a_few_changes_is_a_plan_or_one_sentence(folder: Path, scale: Any, experiment: Any) -> None:
    write(folder, scale, experiment)
    check(outcome(lambda: load_plan("s", folder)))


PAIR = ["0.001 / a", "0.002 / a"]
EXPECT = {"claim": "c", "first": PAIR[0], "second": PAIR[1], "direction": "equal", "margin": 0.1}
RECOVERY = {"from": PAIR[0], "to": PAIR[1], "by": [PAIR[1]]}
COMPARED = {"contrasts": [PAIR], "expect": [EXPECT], "recovery": RECOVERY}


@examples(2)
@given(experiment=mutated(EXPERIMENT | {"axes": AXES} | COMPARED))
def test_an_experiment_with_a_few_changes_is_a_plan_or_one_sentence(folder: Path, experiment: Any) -> None:
    write(folder, SCALE | {"experiments": ["e"]}, experiment)
    check(outcome(lambda: load_plan("s", folder)))


PARTS = st.sampled_from([
    "model", "data", "train", "balance", "terms", "domains", "0", "1", "-1", "weight", "window", "steps", "name",
])  # fmt: skip
PATHS = st.lists(PARTS | PARTS | PARTS | WORDS | TEXT, max_size=6).map(".".join)
RIGHT = st.sampled_from([
    ("train.steps", 50), ("model.top_k", 1), ("balance.terms.0.weight", 0.5), ("balance.terms", []),
    ("data.purity", 0), ("data.domains.0.weight", 3), ("train", {"steps": 9, "warmup_steps": 0}), ("seed", 1),
])  # fmt: skip
FIELDS = st.lists(RIGHT | RIGHT | RIGHT | RIGHT | RIGHT | st.tuples(PATHS, JUNK), min_size=1, max_size=3).map(dict)
BASE = parse(Scale, SCALE | {"experiments": ["e"]}, "base")


@examples(2)
@given(
    arms=st.dictionaries(st.sampled_from(["a", "b", "a / b"]) | TEXT | WORDS, FIELDS, min_size=1, max_size=3),
    field=st.sampled_from(["train.learning_rate", "balance.z_loss_weight"]) | PATHS,
    values=st.lists(st.floats(1e-9, 1) | JUNK, min_size=1, max_size=3),
)
def test_any_axis_is_a_plan_or_one_sentence(arms: Any, field: str, values: list[Any]) -> None:
    raw = {"title": "t", "question": "q", "prediction": "p"}
    raw |= {"axes": {"a": {"arms": arms}, "b": {"field": field, "values": values}}}
    check(outcome(lambda: resolve("s", BASE, {"e": parse(Experiment, raw, "e")})))


@examples(2)
@given(name=TEXT | WORDS | st.text(min_size=250, max_size=300))
def test_any_name_of_a_scale_is_looked_up_or_refused(folder: Path, name: str) -> None:
    (folder / "scales" / "s.yaml").unlink(missing_ok=True)
    assert outcome(lambda: load_plan(name, folder)) is None


@examples(2)
@given(run=mutated(RUN) | JUNK)
@example(run={"data": {"domains": []}, "pip": 1})
@example(run=RUN | {"seed": 10**400})
def test_a_run_with_a_few_changes_is_a_run_or_one_sentence(run: Any) -> None:
    found = outcome(lambda: parse(RunConfig, run, "run"))
    if found is not None:
        assert RunConfig.model_validate_json(canonical_json(found)) == found


@examples(2)
@given(
    schema=st.sampled_from([RunConfig, Scale, Experiment]),
    content=st.binary(max_size=60) | mutated(RUN).map(partial(json.dumps, default=repr)).map(str.encode) | YAML,
)
@example(schema=RunConfig, content=b"[" * 5_000)
@example(schema=RunConfig, content=b'{"data": ' * 2_000)
@example(schema=RunConfig, content=b"9" * 5_000)
def test_any_bytes_as_json_or_yaml_are_settings_or_one_sentence(folder: Path, schema: Any, content: bytes) -> None:
    path = folder / "any"
    path.write_bytes(content)
    for read in (read_json, read_yaml):
        found = outcome(lambda read=read: read(schema, path))
        if found is not None:
            json.dumps(found.model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()
