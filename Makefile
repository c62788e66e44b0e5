# One command per intention; CI calls the same.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help setup demo demo-quick test lint lock clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/installed  ## the environment, in .venv

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Retort needs Python 3.11 or newer, not " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: setup  ## the main job: 3,000 rows, a recorded LLM teacher, about 5 minutes on 2 cores
	$(BIN)/retort run examples/snips.yaml
	$(BIN)/retort report examples/snips.yaml

demo-quick: setup  ## the same path in about a minute: 500 rows, 2 stages
	$(BIN)/retort run examples/snips.yaml $(QUICK)
	$(BIN)/retort report examples/snips.yaml $(QUICK)

QUICK := --set name=snips-quick --set data.limit=500 --set method.stages=2

test: setup lint  ## lint, types, import rules, all tests
	$(BIN)/python -m pytest

lint: setup  ## style, strict types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup  ## pin every package anew
	$(BIN)/uv pip compile --python-version 3.11 pyproject.toml --extra demo --extra dev --quiet --no-annotate --no-header \
		| sed 's/+cpu$$//' > requirements.lock

clean:  ## remove everything that was made here
	rm -rf .venv .retort .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
