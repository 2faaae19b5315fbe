localrules:
    fetch_corpora,
    fetch_sets,


rule fetch_corpora:
    input:
        "results/data/{data}/config.json",
    output:
        touch("results/data/{data}/fetched"),
    log:
        "results/logs/fetch_corpora/{data}.log",
    priority: 100
    conda:
        "../../environment.yml"
    shell:
        "python -m moe fetch --config {input} > {log} 2>&1"


# No mark of one data set or evaluation is an input of another: what one scale fetches makes nothing of another stale.
rule fetch_sets:
    output:
        touch("results/sets/{sets}"),
    log:
        "results/logs/fetch_sets/{sets}.log",
    priority: 100
    conda:
        "../../environment.yml"
    params:
        settings=canonical_json(PLAN.scale.evaluation),
    shell:
        "python -m moe fetch --settings {params.settings:q} > {log} 2>&1"


rule data:
    input:
        config="results/data/{data}/config.json",
        fetched="results/data/{data}/fetched",
    output:
        directory("results/data/{data}/packed"),
    log:
        "results/logs/data/{data}.log",
    priority: 100
    conda:
        "../../environment.yml"
    resources:
        mem_mb=requested_mb(PACKING_BYTES),
    shell:
        "python -m moe data --config {input.config} --out {output} > {log} 2>&1"
