# Every target sets up .venv first when it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Stages and queue workers are started by name: the environment's programs must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro test lint format deps bench constraints clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,s3]'
	$(BIN)/python -m nima.provision
	touch $@

setup: $(READY) ## the environment, the data packages and the plots page; afterwards no network is needed

repro: $(READY) ## run the pipeline: prepare, tokenize, split, train, evaluate, generate_samples
	dvc repro

test: $(READY) ## run all tests
	python -m pytest -n 2

lint: $(READY) ## ruff's checks and format, and the type checker
	ruff check .
	ruff format --check .
	mypy

format: $(READY) ## put the code into ruff's format
	ruff check --fix .
	ruff format .

deps: $(READY) ## name in dvc.yaml the code that each stage executes, after imports or files changed
	python tests/stage_code.py

bench: $(READY) ## measure the pipeline and its parts, side by side with their peers (after make repro)
	python -m benchmarks.pipeline
	python -m benchmarks.data
	python -m benchmarks.near_duplicates
	python -m benchmarks.tokenizers
	OMP_NUM_THREADS=1 python -m benchmarks.batches
	python -m benchmarks.queue

# torch for GPUs pins a triton of its own.
constraints: ## resolve newest versions anew into constraints.txt, in an environment of its own
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet torch==2.13.0
	build/constraints/bin/pip install --quiet --editable '.[dev,s3]'
	head -1 constraints.txt >build/constraints.txt
	build/constraints/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v ^triton= | sort -f >>build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## remove the environment and unfinished work; records of runs, DVC's outputs and cache stay
	rm -rf $(VENV) build
	if test -d .nima; then find .nima -mindepth 1 -maxdepth 1 ! -name records -exec rm -rf {} +; fi
