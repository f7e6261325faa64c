# Two commands do all the set-up: `make quickstart` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install quickstart serve test test-all lint wheel lock clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCE ?= synthetic
DATA ?=
ARGS ?=

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; Python 3.11 is needed; fix: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV): 2 to 3 minutes, about 2.5 GB"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

quickstart: install ## the whole path on a small dataset; SOURCE=movielens DATA=folder for MovieLens
	$(BIN)/python -m jobs.quickstart jobs/configs/quickstart/$(SOURCE).yaml $(if $(DATA),data=$(DATA)) $(ARGS)

serve: install ## start the promoted models over HTTP
	$(BIN)/python -m jobs.serve jobs/configs/serve.yaml $(ARGS)

test: install ## every test that ends within a minute or so
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-all: install ## every test; those that need no cluster run beside the others
	$(BIN)/python tests/all.py $(ARGS)

lint: install ## style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: install ## the wheel and the lock in dist/, for machines without a checkout
	rm -rf dist build/lib build/bdist.*
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	cp requirements.lock dist/

lock: ## write requirements.lock anew from pyproject.toml
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade setuptools
	build/lock/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[encoder,lora,onnx,dev]"
	{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip --exclude py-spy \
		| grep -vE '^(nvidia|cuda|triton)' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock && rm -rf build/lock

clean: ## remove .venv, caches, build outputs and runs/quickstart
	rm -rf $(VENV) build dist runs/quickstart platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
