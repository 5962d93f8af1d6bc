# make demo and make test each do all set-up on a fresh machine; Python 3.11 or newer is all they need.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt

.PHONY: setup demo test lint types wheel-test slow-test bench clean

setup: .venv/ready

.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/equimol demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q
	@$(MAKE) --no-print-directory wheel-test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports

wheel-test: setup
	.ci/wheel-test $(BIN)/python

slow-test: setup
	$(BIN)/python -m pytest -m 'slow and not gpu'

types: setup  # a hint, not a gate
	-$(BIN)/pyright

bench: setup
	$(BIN)/python benchmarks/tensor_products.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache
