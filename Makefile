# All set-up is here: a fresh machine needs Python 3.11 (with venv), make and git.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ECCOS_DATA_DIR ?= $(abspath ../shared/data)
export ECCOS_DATA_DIR

BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --build-constraint constraints.txt
WRAPPER_TESTS := $(wildcard tests/test_langchain*.py tests/test_chat_model*.py tests/test_middleware*.py \
	tests/test_callbacks*.py tests/test_llamaindex*.py tests/test_same_models.py)
PACKAGES := eccos_integrations langchain_eccos llamaindex_eccos

.DEFAULT_GOAL := help
.PHONY: help demo install test test-slow lint format type bench lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo ## route 300 unseen queries of the bundled sample and show what that saved
	@$(BIN)/eccos demo

install: .venv/.dev ## everything needed to work on the project, in .venv

test: .venv/.dev ## the tests: under ten minutes on two cores
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/.dev .venv-floor/.dev ## tests that take longer or need ECCOS_DATA_DIR; the wrappers on their oldest frameworks
	$(BIN)/pytest -m slow
	.venv-floor/bin/pytest -n 2 --dist loadfile -m "not slow" $(WRAPPER_TESTS)

lint: .venv/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: .venv/.dev ## mypy, strict, on the three packages
	$(BIN)/mypy

bench: .venv/.dev ## the benchmarks; the second takes some ten minutes, the last an hour
	@$(PIP) --group bench
	$(BIN)/pytest --benchmark-enable --benchmark-only benchmarks
	$(BIN)/eccos bench assignment
	$(BIN)/eccos bench serving
	$(BIN)/eccos bench langchain
	$(BIN)/eccos bench llamaindex
	ECCOS_BENCH_ENCODERS=lexical $(BIN)/eccos bench routing

lock: ## write constraints.txt anew from the newest versions that fit together
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install --quiet --upgrade pip
	.venv-lock/bin/pip install --quiet torch==2.13.0 hatchling
	.venv-lock/bin/pip install --quiet --group dev --group bench '.[all]'
	{ sed '/^[^#]/d' constraints.txt; \
	  .venv-lock/bin/pip freeze --all --exclude eccos-integrations --exclude setuptools | sed 's/+cpu//' | sort -f; \
	} > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-lock

clean: ## remove what make made
	rm -rf .venv .venv-lock .venv-floor .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.pip: constraints.txt
	@echo "Setting up .venv with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	@touch $@

.venv/.demo: .venv/.pip pyproject.toml
	@echo "Installing eccos-integrations[langchain,plots]"
	@$(PIP) --editable '.[langchain,plots]'
	@touch $@

.venv/.dev: .venv/.pip pyproject.toml
	@echo "Installing eccos-integrations[neural,langchain,agents,llamaindex,redis,metrics,plots,notebooks] and the development tools"
	@$(PIP) --group dev --editable '.[neural,langchain,agents,llamaindex,redis,metrics,plots,notebooks]'
	@touch .venv/.demo $@

.venv-floor/.dev: .venv/.pip constraints-floor.txt pyproject.toml
	@echo "Setting up .venv-floor with the versions of constraints-floor.txt"
	@$(PYTHON) -m venv .venv-floor
	@sed -n 's/==.*/==/p; /^#/d' constraints-floor.txt | sed 's/^/^/' > .venv-floor/floors
	@{ grep -v -f .venv-floor/floors constraints.txt; cat constraints-floor.txt; } > .venv-floor/constraints.txt
	@.venv-floor/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	@.venv-floor/bin/pip install --quiet --disable-pip-version-check --constraint .venv-floor/constraints.txt \
		--build-constraint constraints.txt --group dev --editable '.[neural,langchain,agents,llamaindex,redis,metrics]'
	@touch $@
