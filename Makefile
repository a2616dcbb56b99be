# make train          train the quickstart (CPU; DEVICE=cuda for the GPU stack)
# make test           lint and the default tests
# make test-slow      the tests marked slow
# make test-slurm     the tests marked slurm, on a Slurm of their own (installed by apt, needs root)
# make bench          the benchmarks
# make gpu            everything that only a GPU can show (GPU_PARTS=first: a group; docs/gpu.md)
#
# PYTHON=... names the Python 3.12 that .venv is made with; without it, one is looked for.

PYTHON ?=
DEVICE ?= cpu
CONFIG ?= configs/quickstart.yaml
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors are printed, what pip merely notes is not.
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(DEVICE)

.PHONY: train resume test test-slow test-slurm lint bench gpu doctor install anew

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
	$(or $(wildcard $(BIN)/python),$(PYTHON),python3) -m benchmarks.gpu $(GPU_PARTS)

doctor: install
	$(BIN)/alp-megatron doctor

install: $(INSTALLED)

# The name has the version in it: a .venv of another Python is made anew, and filled anew.
ANEW := $(if $(wildcard $(BIN)/python3.12),,anew)
$(BIN)/python3.12:
	@python=$$(sh requirements/find_python.sh $(PYTHON)) || exit; \
	if [ -e $(VENV) ]; then echo "$(VENV) has no Python 3.12: it is made anew" >&2; fi; \
	"$$python" -m venv --clear $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.installed-cpu: requirements/cpu.txt requirements/cpu-nodeps.txt pyproject.toml $(BIN)/python3.12 $(ANEW)
	$(PIP) -r requirements/cpu.txt
	$(PIP) --no-deps -r requirements/cpu-nodeps.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-cuda: requirements/cuda.txt pyproject.toml $(BIN)/python3.12 $(ANEW)
	$(PIP) $$(grep '^torch==' requirements/cuda.txt) setuptools wheel pybind11 ninja
	$(PIP) --no-build-isolation -r requirements/cuda.txt
	$(PIP) --no-deps --editable .
	touch $@
