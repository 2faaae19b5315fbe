localrules:
    run_config,
    data_config,
    runs_table,


# No YAML file is an input of these rules: an edit that changes no run, such as a comment, must retrain nothing.


rule run_config:
    output:
        "results/runs/{run}/config.json",
    log:
        "results/logs/run_config/{run}.log",
    conda:
        "../../environment.yml"
    params:
        json=run_json,
    shell:
        "python -m moe config --kind run --json {params.json:q} --out {output} > {log} 2>&1"


rule data_config:
    output:
        "results/data/{data}/config.json",
    log:
        "results/logs/data_config/{data}.log",
    conda:
        "../../environment.yml"
    params:
        json=data_json,
    shell:
        "python -m moe config --kind data --json {params.json:q} --out {output} > {log} 2>&1"


rule runs_table:
    output:
        "results/{scale}/runs.json",
    log:
        "results/logs/runs_table/{scale}.log",
    conda:
        "../../environment.yml"
    params:
        digest=PLAN.digest(),
        only=EXPERIMENTS,
    shell:
        "python -m moe runs --scale {wildcards.scale} --experiments={params.only:q} --digest {params.digest}"
        " --out {output} > {log} 2>&1"
