# make demo   the built-in benchmark from end to end: train, evaluate, report
# make test   the test suite; make help lists the rest
#
# Needs: Python 3.11 or newer with venv, make, git. Everything else goes into .venv, once; it is brought up to date
# when pyproject.toml or constraints.txt changes. Settings, given as `make test NAME=value`:
#   PYTHON       the interpreter to build .venv with (default: the first suitable one found)
#   TORCH_INDEX  an extra package index to take torch from, e.g. torch's own index of CPU builds
#                (https://download.pytorch.org/whl/cpu): on Linux the default build brings gigabytes of CUDA libraries
#   DEMO_ARGS, TEST_ARGS, BENCH_ARGS, GPU_ARGS  further arguments of `stcl demo`, of pytest (-n 2: two processes), of
#                benchmarks/bench.py and of benchmarks/gpu_report.py
#   FUZZ_CASES   how many damaged files of each kind `make fuzz` makes, and a twentieth of it odd calls of each command
#   ISA          the processors that `make isa` stands in for, as environment variables
#   TIMES        how often `make repeat` runs the suite
#   MUTANT_ARGS  further arguments of benchmarks/mutants.py, such as `--seed 1` or `--only 'ops/warp.py'`

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: demo test slow isa gpu gpu-report fuzz repeat mutants bench docs lint format weights clean help

# 3.11 comes first because constraints.txt was tested with it.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3 python)
TORCH_INDEX ?=
DEMO_ARGS ?=
TEST_ARGS ?= -n 2
BENCH_ARGS ?=
GPU_ARGS ?=
FUZZ_CASES ?= 3000
ISA ?= ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 STCL_TEST_THREADS=2
TIMES ?= 10
MUTANT_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

demo: $(VENV)/.stamp-package  ## run the built-in benchmark and write its report to demo/
	$(BIN)/stcl demo --out demo $(DEMO_ARGS)

test: $(VENV)/.stamp-dev  ## run the test suite (without the slow tests)
	$(BIN)/python -m pytest $(TEST_ARGS)

slow: $(VENV)/.stamp-dev  ## run the slow tests: real training, minutes each
	$(BIN)/python -m pytest -m slow

# Other instructions sum in another order, and have other faults.
isa: $(VENV)/.stamp-dev  ## run the tests of arithmetic as on other processors, and with two threads
	@for setting in $(ISA); do \
	  echo "$$setting"; \
	  env "$$setting" $(BIN)/python -m pytest $(TEST_ARGS) tests/ops tests/models tests/methods tests/training tests/commands \
	    tests/distributed tests/benchmarks || exit 1; \
	done

gpu: $(VENV)/.stamp-dev  ## run the tests that need a GPU
	$(BIN)/python -m pytest tests/training/test_cuda.py tests/methods/test_no_sync.py

# A machine that is lent for minutes often has torch, but no internet to build .venv from.
gpu-report:  ## measure all that wants a GPU, in nine minutes, a line of JSON for each part
	@PIP_RETRIES=0 PIP_DEFAULT_TIMEOUT=15 $(MAKE) --no-print-directory $(VENV)/.stamp-dev >&2 || \
	  echo "$(VENV) cannot be brought up to date here: a Python that has torch will do." >&2; \
	for candidate in $(BIN)/python $(CANDIDATES); do \
	  if "$$candidate" -c 'import torch' >/dev/null 2>&1; then \
	    exec env PYTHONPATH="src$${PYTHONPATH:+:$$PYTHONPATH}" "$$candidate" benchmarks/gpu_report.py $(GPU_ARGS); \
	  fi; \
	done; \
	echo "No Python with torch among: $(BIN)/python $(CANDIDATES)." >&2; \
	echo "Name yours: make gpu-report PYTHON=/path/to/python" >&2; \
	exit 1

# In processes of their own: one that crashes in a decoder is named and replaced.
fuzz: $(VENV)/.stamp-dev  ## thousands of damaged files and odd calls of every kind, others each time
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest $(TEST_ARGS) tests/fuzz/test_readers.py tests/fuzz/test_commands.py

repeat: $(VENV)/.stamp-dev  ## run the suite again and again, each time with other random numbers
	@failed=""; \
	for seed in $$(seq $(TIMES)); do \
	  STCL_TEST_SEED=$$seed $(BIN)/python -m pytest -q $(TEST_ARGS) || failed="$$failed $$seed"; \
	done; \
	if [ -n "$$failed" ]; then echo "Not all passed with STCL_TEST_SEED =$$failed" >&2; exit 1; fi

mutants: $(VENV)/.stamp-dev  ## put small mistakes into methods/ and ops/ and see whether a test fails
	$(BIN)/python benchmarks/mutants.py $(MUTANT_ARGS)

bench: $(VENV)/.stamp-dev  ## run the short benchmarks and print one table
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

docs: $(VENV)/.stamp-dev  ## write the tables of docs/configuration.md from the declarations of the settings
	$(BIN)/python benchmarks/settings_page.py

lint: $(VENV)/.stamp-dev  ## check style, formatting and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.stamp-dev  ## sort imports, format, mend what can be mended
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# The start that every method shares on TwinStreets, see configs/twinstreets/pretrain.yaml.
weights: $(VENV)/.stamp-package  ## make the weights that come with the package anew
	$(BIN)/stcl data render --layout synthia-seq --style clean --split pretrain --clips 1000 --frames 2 --size 256 128 \
	  --out data/twinstreets/pretrain
	$(BIN)/stcl train twinstreets/pretrain --out runs/pretrain
	$(BIN)/python benchmarks/make_weights.py runs/pretrain src/stcl/weights/small.safetensors

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The interpreter must run (a pyenv shim may not) and be new enough, and it must be able to make an environment.
$(BIN)/python:
	@python=""; \
	for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer among: $(CANDIDATES)." >&2; \
	  echo "Install one, or name yours: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python cannot make virtual environments: its venv or ensurepip module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv. Then run make again." >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$python" --version) ..."; \
	"$$python" -m venv --clear $(VENV)

# torch first and pinned: no other package's range may choose a newer and larger build.
$(VENV)/.stamp-torch: constraints.txt | $(BIN)/python
	@echo "Installing torch (the largest download, once) ..."
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.stamp-package: $(PINS) $(VENV)/.stamp-torch
	@echo "Installing stcl and what it needs ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.stamp-dev: $(PINS) $(VENV)/.stamp-torch
	@echo "Installing stcl with the development tools ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.stamp-package
