VENV ?= .venv
BIN := $(VENV)/bin
# Every install starts from the tested versions.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
CONFIG := setup.cfg pyproject.toml constraints.txt

# The interpreter the environment is made from: the first of these that starts, is new enough
# and can make one. A name on the PATH is not enough (version managers leave shims behind).
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
		>/dev/null 2>&1 && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint format tutorials docs bench ratios clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.test ## make .venv and install the package with its test tools

quickstart: $(VENV)/.test ## fit one model by EM and by SVI and compare the two
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m models.quickstart

# One thread each and two processes: steadier, and faster, than threads inside small tensors.
# ArviZ 0.23 writes a file at the first import of a day, and two processes at once trip over it.
test: $(VENV)/.test ## run every test and doctest
	@$(BIN)/python -W ignore -c 'import arviz'
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pyro_em

format: $(VENV)/.lint ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tutorials: $(VENV)/.test ## run the notebooks in a fresh kernel, in place
	$(BIN)/python tutorials/execute.py

docs: $(VENV)/.docs ## render the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q tutorials build/docs
	@echo "build/docs/index.html"

bench: $(VENV)/.bench ## time the package against its peers, on one thread and on two
	@set -e; for script in $(sort $(wildcard tests/bench/bench_*.py)); do \
		echo "== $$script"; \
		OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(BIN)/python $$script; \
	done

ratios: $(VENV)/.bench ## the same for the ratios in the README, which are written anew
	@rm -f tests/bench/ratios.jsonl
	@set -e; for name in mixtures counts chains quality; do \
		OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(BIN)/python tests/bench/bench_$$name.py \
			--record tests/bench/ratios.jsonl; \
	done
	$(BIN)/python tests/bench/ratios.py

clean: ## remove .venv, builds and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is made once, and reinstalled into only when the configuration changes.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.test: $(CONFIG) | $(VENV)/.created
	@echo "Installing into $(VENV) (the first time takes a few minutes) ..."
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	$(INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(INSTALL) -e '.[peers]'
	@touch $@
