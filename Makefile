# A fresh machine needs python3 (3.11 or newer, with venv) and make; everything else is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two test processes of one thread each: torch's own threads would spin against each other.
PYTEST_FLAGS ?= -n 2
test: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types format clean

help:  ## Show the targets.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

install: $(STAMP)  ## Create .venv and install fxprune with its development tools.

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## Train, prune and export on real data; the results go to demo/.
	$(BIN)/python -m fxprune demo --out demo

test: lint types  ## Everything a change must pass: lint, types and the tests.
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMP)  ## Style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! grep -rn --include='*.py' 'raise AssertionError' fxprune passes tests tools \
		|| { echo 'Raise a subclass of FxpruneError instead (in tests: pytest.fail).'; exit 1; }

types: $(STAMP)  ## Static types.
	$(BIN)/mypy

format: $(STAMP)  ## Format the code and apply the safe fixes.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what the other targets made, except .venv.
	rm -rf build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
