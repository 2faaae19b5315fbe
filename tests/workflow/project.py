"""A copy of the project that a test may edit and run, and the calls that it makes there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER = """
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)


class Executor(RemoteExecutor):
    def run_job(self, job):
        raise NotImplementedError

    async def check_active_jobs(self, active_jobs):
        raise NotImplementedError

    def cancel_jobs(self, active_jobs):
        raise NotImplementedError
"""

PARTS = ("Snakefile", "moe", "workflow", "profiles", "config", "environment.yml")


def copy_project(target: Path) -> Path:
    """What a run needs, and nothing that a run has made."""
    target.mkdir(parents=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def use_cluster(project: Path) -> None:
    """Let the profile for SLURM plan for an executor that the project carries, where that of SLURM is not installed."""
    plugin = project / "snakemake_executor_plugin_cluster"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(CLUSTER)
    profile = project / "profiles" / "slurm" / "config.yaml"
    profile.write_text(profile.read_text().replace("executor: slurm", "executor: cluster"))


def command(*args: str) -> list[str]:
    """The call of a module with this Python."""
    return [sys.executable, "-m", *args]


def environment() -> dict[str, str]:
    """The caller's, without what would point at another checkout or another profile."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}


def run(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a module in the project to its end."""
    return subprocess.run(command(*args), cwd=project, env=environment(), capture_output=True, text=True)


def jobs(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Jobs per rule, read from the last table that Snakemake prints; empty if there is nothing to be done."""
    tables = (done.stdout + done.stderr).split("Job stats:")
    rows = re.findall(r"^(\w+) +(\d+)$", tables[-1], flags=re.MULTILINE) if len(tables) > 1 else []
    return {rule: int(count) for rule, count in rows if rule != "total"}
