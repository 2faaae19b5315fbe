# The optimizer's state and the position lie in results/state/<run>, which no rule declares: Snakemake deletes the
# outputs of a failed or killed job, and the next attempt goes on from that state. A log that cannot be written, or is
# cut off by a signal, must not fail a training.
rule train:
    input:
        config="results/runs/{run}/config.json",
        data=packed_data,
        parent=parent_record,
    output:
        model=directory("results/runs/{run}/model"),
        curve="results/runs/{run}/train.jsonl",
        speed="results/runs/{run}/speed.jsonl",
        counts="results/runs/{run}/counts.parquet",
        record="results/runs/{run}/train.json",
    log:
        "results/logs/train/{run}.log",
    priority: 10
    retries: 2
    conda:
        "../../environment.yml"
    threads: HARDWARE.threads * HARDWARE.processes
    resources:
        **MACHINES,
        mem_mb=train_mb,
        # Neither input nor param: a run is the same whatever others start from it, so it must not be trained again.
        branches=branch_flags,
    shell:
        "python -m moe train --config {input.config} --data {input.data} --state results/state/{wildcards.run}"
        ' --hardware "$MOE_HARDWARE" $MOE_TRAIN_FLAGS {resources.branches} 2>&1 | (trap "" INT TERM; tee {log} || true)'
