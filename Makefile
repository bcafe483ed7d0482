# make demo   install, then train the tiny model through the whole recipe on this CPU
# make check  install, then style, types, import contracts and unit tests: what to run before every commit
# make test   make check, then the tests that start Ray, vLLM and DeepSpeed: what continuous integration runs
# make docs   install, then write docs/metrics.md and docs/recipe.md from the docstrings in the code
# make lock   resolve pyproject.toml again into the lock files for CPU and GPU; needs uv, which make setup installs
# make lock-check  try to install requirements-gpu.lock on Python 3.11 and 3.12, without downloading a package; needs uv
# make chaos  install, then kill, freeze and damage real runs for half an hour; SEED=n chooses order and moments
# make fuzz   install, then give every command 6,000 hostile inputs (SEED=n for others), and print what went wrong
# make bench  install, then measure every claim of speed and memory, and print a table
# make gpu-wheels WHEELS=folder  install, then collect what a machine with a GPU and torch needs for make gpu-test
# make gpu-test WHEELS=folder    on such a machine: kernels, rates, learner steps; at most 8 minutes, downloads nothing
PYTHON ?= python3.11
PYTHONS := 3.11 3.12
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH := $(shell grep '^torch==' requirements-cpu.lock)

.PHONY: help setup demo check test unit integration chaos fuzz docs bench gpu-wheels gpu-test lock lock-check lint format clean
help:
	@sed -n 's/^# //p' Makefile

setup: $(READY)

$(READY): requirements-cpu.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or 3.12, or run 'make PYTHON=/path/to/python3.12'"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) from the configured package sources, else from $(TORCH_CPU_INDEX)"
	$(BIN)/python -m pip install -q --no-deps "$(TORCH)" || \
		$(BIN)/python -m pip install -q --no-deps --index-url $(TORCH_CPU_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install -q --no-deps -r requirements-cpu.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/qwenlong train recipes/local.yaml $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

unit: $(READY)
	$(BIN)/python -m pytest tests/unit -q -n logical --maxprocesses=8 --dist=worksteal $(ARGS)

check: $(READY)
	@$(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) lint unit

integration: $(READY)
	$(BIN)/python -m pytest tests/integration tests/gpu -n 2 --dist=loadfile --no-loadscope-reorder $(ARGS)

test: check
	@$(MAKE) --no-print-directory integration

SEED ?= 0
chaos: $(READY)
	$(BIN)/python -m tests.chaos --seed $(SEED) $(ARGS)

docs: $(READY)
	$(BIN)/python -m docs.generate

SEED ?= 0

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seed $(SEED) $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

WHEELS ?= build/gpu-wheels
OUT ?= gpu-results

gpu-wheels: $(READY)
	$(BIN)/python -m benchmarks.gpu.wheels $(WHEELS) $(ARGS)

gpu-test:
	bash benchmarks/gpu/run.sh $(WHEELS) $(OUT) $(ARGS)

## What a lock file pins already stays as it is; `make lock ARGS=--upgrade` takes the newest of everything.
UV ?= $(if $(wildcard $(BIN)/uv),$(BIN)/uv,uv)
LOCK := $(UV) pip compile pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-header --no-annotate --no-emit-find-links --no-emit-index-url
CPU_WHEELS ?= $(TORCH_CPU_INDEX)/torch
NOT_ON_CPU := triton torchaudio torchcodec torchvision

lock:
	@command -v $(UV) >/dev/null || { echo "error: uv not found; run 'pip install uv'"; exit 1; }
	$(LOCK) --quiet --extra cpu --find-links $(CPU_WHEELS) $(NOT_ON_CPU:%=--no-emit-package=%) $(ARGS) -o requirements-cpu.lock
	$(LOCK) --quiet --extra gpu $(ARGS) -o requirements-gpu.lock

## Every pin but DeepSpeed, which is Python, must have a wheel for glibc 2.31 (the oldest that llguidance takes), and none
## may ask for more or for another version than the file has.
lock-check:
	@command -v $(UV) >/dev/null || { echo "error: uv not found; run 'pip install uv'"; exit 1; }
	@target=$$(mktemp -d) && trap 'rm -r "$$target"' EXIT && for version in $(PYTHONS); do \
		found=$$($(UV) pip install --dry-run --target "$$target" --python-version $$version \
			--python-platform x86_64-manylinux_2_31 --only-binary :all: --no-binary deepspeed \
			-r requirements-gpu.lock 2>&1) || { echo "$$found"; exit 1; }; \
		echo "$$found" | sed -n 's/^ + //p' | diff requirements-gpu.lock - \
			&& echo "requirements-gpu.lock resolves on Python $$version" || exit 1; done

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
