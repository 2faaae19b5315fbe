# What the rules take, looked up in the plan: files, and arguments of their commands.


def run_json(wildcards):
    """Resolved config of a run: equal settings give equal text, however the YAML is spelled."""
    return canonical_json(PLAN.configs[wildcards.run])


def data_json(wildcards):
    """Resolved config of a data set."""
    return canonical_json(PLAN.data[wildcards.data])


def data_folder(run):
    """Packed data that a run is trained and measured on."""
    return f"results/data/{PLAN.data_of[run]}/packed"


def packed_data(wildcards):
    """`data_folder` as an input."""
    return data_folder(wildcards.run)


def parent_record(wildcards):
    """The training record of the run that a run branches off."""
    # Only its being there counts: what the child has trained does not depend on when its parent was.
    return [ancient(f"results/runs/{parent}/train.json") for parent, _ in branch_of(wildcards.run)]


def branch_of(run):
    """The run that a run of the plan branches off, and after how many steps; empty without."""
    return [PLAN.branches[run]] if run in PLAN.branches else []


def branch_flags(wildcards):
    """How a training leaves states for its branches, and where it starts from."""
    flags = [f"--from results/state/{parent}.branches/{step}" for parent, step in branch_of(wildcards.run)]
    flags += [f"--keep {' '.join(map(str, PLAN.kept[wildcards.run]))}"] if wildcards.run in PLAN.kept else []
    return " ".join(flags)


def run_folders(series):
    """The runs of a series."""
    return [f"results/runs/{series}-s{seed}" for seed in PLAN.scale.seeds]


def series_records(wildcards):
    """The training records of the runs of a series."""
    return [f"{run}/train.json" for run in run_folders(wildcards.series)]


def series_data(wildcards):
    """The data of a series."""
    return data_folder(f"{wildcards.series}-s{PLAN.scale.seeds[0]}")


def series_runs(wildcards):
    """The runs of a series as arguments: run, data, record."""
    data = series_data(wildcards)
    return [f"--run {run} {data} {run}/evaluation.json" for run in run_folders(wildcards.series)]


def timed_records(wildcards):
    """The training records of the runs that are timed."""
    return [f"results/runs/{run}/train.json" for run in PLAN.timed]


def timed_data(wildcards):
    """The data of the runs that are timed."""
    return sorted({data_folder(run) for run in PLAN.timed})


def timed_runs():
    """The runs that are timed, as arguments."""
    return [f"--run results/runs/{run} {data_folder(run)}" for run in PLAN.timed]


def records(wildcards):
    """Records that the report reads."""
    files = ["train.json", "counts.parquet", "evaluation.json", "routing.parquet"]
    found = [f"results/runs/{run}/{file}" for run in PLAN.configs for file in files]
    whole = {"latency": PLAN.scale.latency, "estimators": PLAN.scale.estimators}
    return [*found, *(f"results/{PLAN.name}/{name}.json" for name, settings in whole.items() if settings)]
