# Every target sets up .venv first when it is missing or stale, that is, when requirements.lock or pyproject.toml
# are not the ones it was made from. PYTHON=/path/to/python chooses another interpreter.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lint lab report bench verify clean distclean

BIN := .venv/bin
BENCH ?= --quick
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
HASH := import hashlib; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in ("requirements.lock", "pyproject.toml"))).hexdigest())

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Set up .venv from requirements.lock (uv where there is one, else pip)
	@set -euo pipefail; \
	if [ -z "$(PYTHON)" ] && [ -f .venv/.lock-hash ] && \
	   [ "$$($(BIN)/python -c '$(HASH)' 2>/dev/null)" = "$$(cat .venv/.lock-hash)" ]; then exit 0; fi; \
	python=""; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c '$(IN_RANGE)' >/dev/null 2>&1; then \
	    python="$$("$$candidate" -c 'import sys; print(sys.executable)')"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python >= 3.11 and < 3.14 found (tried: $(PYTHONS)). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	wanted="$$("$$python" -c '$(HASH)')"; \
	if [ -f .venv/.lock-hash ] && [ "$$wanted" = "$$(cat .venv/.lock-hash)" ] && \
	   [ "$$($(BIN)/python -V 2>&1)" = "$$("$$python" -V 2>&1)" ]; then exit 0; fi; \
	rm -rf .venv; \
	if uv --version >/dev/null 2>&1; then \
	  echo "Setting up .venv with uv and $$("$$python" -V) ..."; \
	  uv venv --quiet --python "$$python" .venv; \
	  uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock; \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
	  echo "Setting up .venv with pip and $$("$$python" -V) ..."; \
	  "$$python" -m venv .venv; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi; \
	echo "$$wanted" > .venv/.lock-hash

reproduce: setup ## Run every notebook at profile lab, print the claims and where the results lie
	@$(BIN)/xai-lib run all --profile lab --parallel 2
	@$(BIN)/xai-lib claims
	@echo "Executed notebooks, records and figures: $${XAI_OUTPUT_DIR:-outputs}/<notebook>/"

test: lint ## Lint, unit tests with coverage, and every notebook through nbval (XAI_DATA_DIR adds the real data)
	@$(BIN)/python -m pytest -n auto --dist loadfile --cov=xai_lib --cov-report=term:skip-covered --cov-fail-under=90
	@OMP_NUM_THREADS=1 XAI_OUTPUT_DIR=$(CURDIR)/.cache/nbval \
	  $(BIN)/python -m pytest -n auto --dist loadfile --nbval-lax --nbval-current-env notebooks

lint: setup ## ruff check, ruff format --check and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lab: setup ## JupyterLab on this machine only (127.0.0.1)
	@$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=notebooks

report: setup ## Build one static HTML site from records and notebooks in outputs/report
	@$(BIN)/xai-lib report

bench: setup ## Measure every study against the usual tools, one table (BENCH= for full sizes: hours)
	@$(BIN)/python bench/all.py $(BENCH)

verify: setup ## Compare the newest results with data/expected, figure by figure
	@$(BIN)/xai-lib verify

clean: ## Remove results and caches (.venv stays)
	rm -rf outputs .cache .mypy_cache .ruff_cache .pytest_cache .coverage
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

distclean: clean ## Remove .venv as well
	rm -rf .venv *.egg-info
