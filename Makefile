# Everything runs in environments of this checkout's own: .venv, and two small ones for proofs (.venv-bare, .venv-lowest).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := .venv/.ready

# One thread per test, no telemetry from the runtimes we test, no notices about newer tools.
export OMP_NUM_THREADS := 1
export ORT_DISABLE_TELEMETRY := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo check test slow bench docs environments clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with all that development needs (once; again when the pins change)

# torch comes first and alone: with it in place nothing else asks for another build of it.
$(READY): pyproject.toml constraints.txt
	@echo "setup: installing into .venv with $(PYTHON); the first time takes a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install -qq -c constraints.txt --upgrade pip
	@$(PIP) install -qq -c constraints.txt torch
	@$(PIP) install -qq -c constraints.txt --build-constraint constraints.txt -e '.[forge,grpc,image,keras,litert,nncf,onnxruntime,openvino,parquet,search,serve]' --group dev
	@touch $@
	@echo "setup: ready"

demo: setup ## Train a small network on real digits, optimise it for this machine, show the result
	@$(BIN)/farthing demo

check: setup ## Lint, format, types, import layers
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check --output-format concise || { echo "check: format them with $(BIN)/ruff format"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@shown=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$shown"; exit 1; }
	@echo "check: lint, format, types and import layers are clean"

environments: setup ## Prove the base dependencies alone, and the lowest versions, are enough for the device side
	@$(BIN)/python tools/environments.py bare lowest

# Two at a time, a file by one worker: pages run in order, and what a file makes once is made once. Clocks are tested as well,
# and two at a time may be late for one another: what fails is run once more, alone.
test: setup check environments ## All of it: checks, environments, tests, docs and examples
	@$(BIN)/pytest -q -n 2 --dist loadfile || $(BIN)/pytest -q --last-failed
	@echo "make test: passed (lint, types, import layers, bare and lowest environments, tests, docs, examples)"

slow: setup ## The tests that take long
	@$(BIN)/pytest -q -m slow

bench: setup ## Run every benchmark
	@$(PIP) install -qq -c constraints.txt --group bench
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: setup ## Run every Python and bash block of the README and the docs, and the examples
	@$(BIN)/pytest -q $(wildcard README*.md) $(wildcard docs) $(wildcard tests/test_examples.py)

clean: ## Remove environments, caches and builds
	rm -rf .venv .venv-bare .venv-lowest build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
