# All seeds of an arm in one process: to load the libraries and the tasks takes longer than to evaluate a run.
rule evaluate:
    input:
        records=series_records,
        data=series_data,
        sets=f"results/sets/{digest(PLAN.scale.evaluation)}",
    output:
        records=expand("results/runs/{{series}}-s{seed}/evaluation.json", seed=PLAN.scale.seeds),
        routing=expand("results/runs/{{series}}-s{seed}/routing.parquet", seed=PLAN.scale.seeds),
    log:
        "results/logs/evaluate/{series}.log",
    conda:
        "../../environment.yml"
    threads: HARDWARE.threads
    resources:
        mem_mb=evaluate_mb,
    params:
        settings=canonical_json(PLAN.scale.evaluation),
        runs=series_runs,
    shell:
        "python -m moe evaluate {params.runs} --settings {params.settings:q} > {log} 2>&1"


if PLAN.scale.estimators:

    # Its steps are timed too, as ratios of neighbours in time, so it need not be alone.
    rule estimators:
        input:
            config=f"results/runs/{PLAN.widest}/config.json",
            data=data_folder(PLAN.widest),
        output:
            "results/{scale}/estimators.json",
        log:
            "results/logs/estimators/{scale}.log",
        priority: 10
        retries: 2
        conda:
            "../../environment.yml"
        threads: HARDWARE.threads
        resources:
            **ONE_GPU,
            mem_mb=requested_mb(estimators_bytes(PLAN.configs[PLAN.widest], PLAN.scale)),
        params:
            settings=canonical_json(PLAN.scale.estimators),
            run=PLAN.widest,
        shell:
            "python -m moe estimators --run results/runs/{params.run} --data {input.data}"
            " --state results/state/estimators-{wildcards.scale}"
            ' --settings {params.settings:q} --hardware "$MOE_HARDWARE" --out {output}'
            ' 2>&1 | (trap "" INT TERM; tee {log} || true)'


if PLAN.scale.latency:

    # Timing needs the machine alone: every core, and after all jobs that may run beside each other.
    rule latency:
        input:
            records=timed_records,
            data=timed_data,
        output:
            "results/{scale}/latency.json",
        log:
            "results/logs/latency/{scale}.log",
        priority: -10
        conda:
            "../../environment.yml"
        threads: ALL_CORES
        resources:
            **ONE_GPU,
            machine=1,
            mem_mb=requested_mb(latency_bytes([PLAN.configs[run] for run in PLAN.timed], PLAN.scale)),
        params:
            settings=canonical_json(PLAN.scale.latency),
            runs=timed_runs(),
        shell:
            "python -m moe latency {params.runs} --settings {params.settings:q}"
            ' --hardware "$MOE_HARDWARE" --out {output} > {log} 2>&1'
