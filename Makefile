# The two commands: `make reproduce` and `make test`. The others are listed by `make help`.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
SCALE ?= cpu
EXPERIMENTS ?= balance_window
JOBS ?= 2
START := $(shell date +%s)

RUN := .venv/bin/python -m
REFERENCE := results/reference/$(SCALE)

.PHONY: help environment reproduce smoke test bench figures reference format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST)

environment: ## make .venv from the pinned requirements
	@$(PYTHON) -c '' 2> /dev/null || { echo "error: Python 3.11 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) workflow/environment.py

reproduce: environment ## the main job: from pinned text to the report
	@$(RUN) snakemake --config scale=$(SCALE) experiments=$(EXPERIMENTS)
	@$(RUN) moe headline --records results/$(SCALE)/runs.json
	@seconds=$$(($$(date +%s) - $(START))); \
	printf 'elapsed %d min %02d s, set-up included\nreport  %s\n' \
	  $$((seconds / 60)) $$((seconds % 60)) "$(CURDIR)/reports/$(SCALE)/index.html"

smoke: ## the same at the smallest scale, in about two minutes
	@$(MAKE) --no-print-directory reproduce SCALE=smoke

test: environment ## format, lint, types, tests
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint
	$(RUN) basedpyright --pythonpath .venv/bin/python
	OMP_NUM_THREADS=1 $(RUN) pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder tests

bench: environment ## measure speed and memory beside other programs, in about ten minutes on an idle machine
	@$(RUN) benchmarks --out results/benchmarks

figures: environment ## redraw the committed figures and report from the committed records
	@$(RUN) moe tables --records $(REFERENCE)/runs.json --runs $(REFERENCE)/runs --out $(REFERENCE)/tables
	@$(RUN) moe figures --records $(REFERENCE)/runs.json --runs $(REFERENCE)/runs --out $(REFERENCE)/figures
	@$(RUN) moe report --records $(REFERENCE)/runs.json --runs $(REFERENCE)/runs --tables $(REFERENCE)/tables \
	  --figures $(REFERENCE)/figures --out reports/reference/$(SCALE)/index.html
	@echo "report  $(CURDIR)/reports/reference/$(SCALE)/index.html"

reference: environment ## for maintainers: keep the records of a finished scale with the code, and redraw
	@$(RUN) moe reference --records results/$(SCALE)/runs.json --out $(REFERENCE)
	@$(MAKE) --no-print-directory figures SCALE=$(SCALE)

format: environment ## rewrite code, rules and the generated pages
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) snakefmt Snakefile workflow
	$(RUN) moe schema > config/README.md
	$(RUN) moe conformance --out docs/conformance.md > /dev/null

clean: ## remove what runs have made; the committed reference and .venv stay
	mkdir -p results reports
	find results reports -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
	rm -rf .snakemake
