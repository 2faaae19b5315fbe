"""A configuration file is plain data of a bounded size, whatever YAML and JSON can spell."""

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from moe.scale import Experiment, Scale
from moe.settings import ConfigError, read_json, read_yaml
from moe.sweep import load_plan

ROOT = Path(__file__).parents[1]


def refusal(path: Path, text: str, read: Callable = read_yaml) -> str:
    """The sentence that refuses `text` as an experiment."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError) as error:
        read(Experiment, path)
    return str(error.value)


def doubling(first: str, link: str) -> str:
    """YAML in which each of 28 anchors stands for the one before it, twice and more."""
    lines = [f"a0: &a0 {first}"] + [f"a{n}: &a{n} {link.replace('*', f'*a{n - 1}')}" for n in range(1, 28)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (doubling("[x, x]", "[*, *]"), "stands for more than 262,144 characters and values"),
        (doubling("{x: 1}", "{p: *, q: *}"), "stands for more than 262,144 characters and values"),
        (f"long: &a {'x' * 100_000}\nall: [{'*a, ' * 2_000}]", "stands for more than 262,144 characters and values"),
        (f"? &a {'x' * 100_000}\n: 1\nall: [{'{*a : 1}, ' * 2_000}]", "stands for more than 262,144 characters"),
        (doubling("{x: 1}", "{<<: [*, *, *]}"), "merge keys are not supported"),
        ("a: &a [*a, *a]", "nested too deeply"),
        ("x" * 300_000, "has more than 262,144 bytes"),
    ],
    ids=["lists", "sections", "text", "keys", "merged", "circle", "file"],
)
def test_no_small_file_grows_in_memory(text: str, complaint: str, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        assert complaint in refusal(tmp_path / "bomb.yaml", text)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["scales/smoke", "experiments/balance_window"])
@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "object/apply:subprocess.getoutput"])
def test_no_tag_runs_anything(kind: str, tag: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / f"{kind}.yaml"
    path.write_text(f"{path.read_text()}\nextra: !!python/{tag} ['touch {tmp_path}/mark']\n")
    with pytest.raises(ConfigError, match=f"the tag 'tag:yaml.org,2002:python/{tag}' is not supported"):
        load_plan("smoke", tmp_path / "config")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("title: !!timestamp x", "the tag 'tag:yaml.org,2002:timestamp' is not supported"),
        ("title: 2001-01-01", "'title' is of type date: put the value in quotes"),
        ("axes: {x: {arms: {1: {}}}}", "'axes.x.arms' has a key that is of type int: put the key in quotes"),
        ('title: "a\\0b"', r"'title' holds the character '\x00': remove it"),
        ('"\\ud800": 1', r"holds the character '\ud800': remove it"),
        ("axes: {x: {values: [.nan]}}", "'axes.x.values.0' must be a finite number, got nan"),
        ("axes: {x: {values: [-.inf]}}", "'axes.x.values.0' must be a finite number, got -inf"),
        (f"axes: {{x: {{values: [0x{'f' * 5000}]}}}}", "'axes.x.values.0' is too large a number"),
        (f"title: {'1:' * 400}1.5", "not valid YAML"),  # base 60, beyond a float
        (f"title: {'9' * 5000}", "not valid YAML"),
        ("title: " + "[" * 40 + "]" * 40, "is nested too deeply"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_what_no_setting_can_be_is_refused_with_its_place(text: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path / "odd.yaml", text)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, '{"title": "\\ud800"}', '{"title": NaN}', "1e400"])
def test_odd_json_is_refused_too(text: str, tmp_path: Path) -> None:
    assert str(tmp_path / "odd.json") in refusal(tmp_path / "odd.json", text, read_json)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    for read in (read_yaml, read_json):
        with pytest.raises(ConfigError, match="/dev/zero: has more than"):
            read(Scale, Path("/dev/zero"))


def test_aliases_are_welcome_where_they_stay_small(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text(
        "{title: t, question: q, prediction: p, axes: {x: {arms: {a: &a {train.steps: 5, model.top_k: 1}, b: *a}}}}"
    )
    arms = read_yaml(Experiment, path).axes["x"].arms
    assert arms["a"] == arms["b"] == {"train.steps": 5, "model.top_k": 1}
