# `code` redraws after any edit of the package: the report marks the runs that older code has made.
rule tables:
    input:
        runs="results/{scale}/runs.json",
        records=records,
    output:
        report(
            directory("results/{scale}/tables"),
            patterns=["{table}.csv"],
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        "results/logs/tables/{scale}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=requested_mb(DRAWING_BYTES),
    params:
        code=code_fingerprint(drawing=True),
    shell:
        "python -m moe tables --records {input.runs} --out {output} > {log} 2>&1"


rule figures:
    input:
        runs="results/{scale}/runs.json",
        records=records,
    output:
        report(
            directory("results/{scale}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "results/logs/figures/{scale}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=requested_mb(DRAWING_BYTES),
    params:
        code=code_fingerprint(drawing=True),
    shell:
        "python -m moe figures --records {input.runs} --out {output} > {log} 2>&1"


rule report_page:
    input:
        runs="results/{scale}/runs.json",
        tables="results/{scale}/tables",
        figures="results/{scale}/figures",
    output:
        index=report("reports/{scale}/index.html", caption="../report/page.rst", category="Report"),
        pages=report(
            expand("reports/{{scale}}/{experiment}.html", experiment=PLAN.experiments),
            caption="../report/page.rst",
            category="Report",
        ),
    log:
        "results/logs/report_page/{scale}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=requested_mb(DRAWING_BYTES),
    params:
        code=code_fingerprint(drawing=True),
    shell:
        "python -m moe report --records {input.runs} --tables {input.tables} --figures {input.figures}"
        " --out {output.index} > {log} 2>&1"
