# make train          train the quickstart (CPU; DEVICE=cuda for the GPU stack)
# make test           lint and the default tests
# make test-slow      the tests marked slow
# make test-slurm     the tests marked slurm, on a Slurm of their own (installed by apt, needs root)
# make bench          the benchmarks
# make gpu            everything that only a GPU can show (GPU_PARTS="noise step": some of it)

PYTHON ?= python3.11
DEVICE ?= cpu
CONFIG ?= configs/quickstart.yaml
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(DEVICE)

.PHONY: train resume test test-slow test-slurm lint bench gpu doctor install

train: install
	$(BIN)/alp-megatron train $(CONFIG) $(ARGS)

resume: install
	$(BIN)/alp-megatron train $(CONFIG) --resume $(ARGS)

test: lint
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m slow

test-slurm: install
	command -v slurmctld slurmd munged > /dev/null || \
	  { apt-get update -q && apt-get install -y -q --no-install-recommends slurm-wlm munge; }
	$(BIN)/pytest -m slurm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.all

# Installs nothing: what is missing on the machine is skipped, and said.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(GPU_PARTS)

doctor: install
	$(BIN)/alp-megatron doctor

install: $(INSTALLED)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed-cpu: requirements/cpu.txt requirements/cpu-nodeps.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/cpu-nodeps.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.installed-cuda: requirements/cuda.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet torch==2.13.0 setuptools wheel pybind11 ninja
	$(BIN)/pip install --quiet --no-build-isolation -r requirements/cuda.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@
