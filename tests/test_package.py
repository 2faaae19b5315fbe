"""The package reads data and never runs it: no pickle, no remote code, no unpacking."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("moe", "workflow") for path in (ROOT / folder).rglob("*.py"))
# Modules that unpickle or run what they read.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "jsonpickle"}
# Functions that do, or that write where an archive says.
CALLS = {
    "eval", "exec", "compile", "__import__", "load_module", "extract", "extractall", "unpack_archive", "read_pickle",
    "full_load", "unsafe_load", "load_all", "system", "popen",
}  # fmt: skip


def name_of(call: ast.Call) -> tuple[str, str]:
    """Owner and name of a called function: `torch`, `load`."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return ast.unparse(function.value), function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def offences(code: str) -> Iterator[str]:
    """What the code says that could run data."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else {node.module}
            )
            yield from (f"imports {name}" for name in names & MODULES)
        if not isinstance(node, ast.Call):
            continue
        owner, name = name_of(node)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        method = owner in ("self", "model") or name == "compile" and owner in ("re", "torch", "module")
        if name in CALLS and not method:
            yield f"calls {owner}.{name}"
        if name == "load" and owner == "torch":
            yield "calls torch.load"
        if name == "load" and owner in ("np", "numpy") and options.get("allow_pickle") != "False":
            yield "calls np.load without allow_pickle=False"
        if name == "load" and owner == "yaml" and "Loader" not in [*map(ast.unparse, node.args[1:]), *options.values()]:
            yield "calls yaml.load without our Loader"
        if options.get("trust_remote_code", "False") != "False" or options.get("allow_pickle", "False") != "False":
            yield f"lets {name} run what it reads"
        if options.get("shell") == "True":
            yield f"starts a shell in {name}"


def test_nothing_of_the_package_can_run_what_it_reads() -> None:
    assert len(FILES) > 50
    found = {str(path.relative_to(ROOT)): list(offences(path.read_text(encoding="utf-8"))) for path in FILES}
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "zipfile.ZipFile(path).extractall(folder)",
        "datasets.load_dataset(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=trust)",
        "os.system(line)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(offences(code))
