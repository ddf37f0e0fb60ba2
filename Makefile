# make test    lint, types, tests and doctests      make demo    sparse networks learn Fashion-MNIST
# make slow    the long tests as well               make help    every target
#
# Everything runs in its own environment, .venv, made on first use and brought up to date only
# when setup.cfg changes. pip's own settings (PIP_INDEX_URL, PIP_CONSTRAINT, ...) are honoured.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# No figure here needs a screen.
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.PHONY: help test lint format types tests slow demo quickstart docs wheel stacks benchmarks clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# bin/pip is the last thing that venv makes: a half-made environment is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "sparseopt needs Python 3.10 or newer, not " + sys.version.split()[0] \
	    + ": make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg | $(BIN)/pip
	@echo "Installing sparseopt with what the examples need (torch is large: a few minutes) ..."
	$(BIN)/pip install -q -e '.[examples]'
	@touch $@

$(VENV)/.test: setup.cfg | $(BIN)/pip
	@echo "Installing sparseopt with everything the tests need (torch is large: a few minutes) ..."
	$(BIN)/pip install -q -e '.[all,dev]'
	@touch $(VENV)/.demo $@

test: lint types tests ## lint, types, tests and doctests: what CI runs

lint: $(VENV)/.test ## style: ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test ## rewrite the files in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.test ## mypy over the package
	$(BIN)/mypy sparseopt

tests: $(VENV)/.test ## pytest; make tests ARGS="-k resume -x"
	$(BIN)/python -m pytest $(ARGS)

slow: $(VENV)/.test ## the tests marked slow
	$(BIN)/python -m pytest -m slow $(ARGS)

demo: $(VENV)/.demo ## dense, SET and RigL on Fashion-MNIST; make demo ARGS="--data digits"
	$(BIN)/python examples/demo.py $(ARGS)

quickstart: $(VENV)/.demo ## examples/quickstart.py: the digits, in seconds
	$(BIN)/python examples/quickstart.py

docs: $(VENV)/.test ## the site, into build/site, warnings as errors; then run every example in it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -q sparseopt tests/test_readme.py tests/test_docs_site.py $(ARGS)
	@echo "to read it: $(BIN)/python -m http.server -d build/site"

wheel: ## build dist/, install the wheel in an empty environment and test it there
	PYTHON=$(PYTHON) .ci/wheel $(ARGS)

stacks: $(VENV)/.test ## the tests of training stacks, and the table of docs/stacks.md from them
	$(BIN)/python -m pytest -q -m stack --stacks benchmarks/results/stacks.json tests $(ARGS)
	$(BIN)/python docs/tables.py

# Pages last: they are written from what the others measure.
benchmarks: $(VENV)/.test ## run every script in benchmarks/, and write what is made of it
	@set -e; for script in $$(grep -ls '^if __name__' \
	    $(sort $(filter-out %_page.py, $(wildcard benchmarks/*.py))) benchmarks/*_page.py); do \
	    echo "$$script"; $(BIN)/python $$script $(ARGS); done
	$(BIN)/python docs/tables.py

clean: ## remove the environment and everything that tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
