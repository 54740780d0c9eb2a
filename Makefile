# What people run. Each target makes the virtual environment it needs, once.
#
#   make run     compare the designs on the bundled kernel runs and on a notifier storm
#   make test    all fast tests: compiled, then interpreted with coverage
#   make check   format, lint, types
#   make soak    slow tests too, with bounds checks in the kernels
#   make bench   the timed benchmarks
#   make oracle  get the newest QEMU this machine can, for the tests against it
#   make mutants one-place faults of the architecture room: how many QEMU catches
#   make report  only the HTML report
#   make rig     prepare the real-kernel rig in $SHADOWMMU_RIG, or in the user's cache (rig/README.md)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := $(BIN)/python -m pytest -n auto

# Rooms whose code is kernels: their tests also run interpreted, where coverage can see them.
KERNEL_ROOMS := arch machine pgtable host kvm designs guest engine
KERNEL_TESTS := $(wildcard $(addprefix tests/,$(KERNEL_ROOMS)))

.PHONY: help run report test check soak bench oracle mutants rig clean

help:
	@sed -n 's/^#   make/  make/p' $(MAKEFILE_LIST)

$(VENV)/installed-core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing shadowmmu into $(VENV)"
	$(PIP) install --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-core
	@echo "installing the tools of tests and development into $(VENV)"
	$(PIP) install --editable '.[test,dev,oracle]'
	touch $@

run: $(VENV)/installed-core
	@mkdir -p build
	$(BIN)/shadowmmu compare --report build/report.html

report: $(VENV)/installed-core
	@mkdir -p build
	$(BIN)/shadowmmu compare --report build/report.html > build/report.txt

test: $(VENV)/installed-dev
	@mkdir -p build
	@echo "== compiled"
	$(PYTEST) tests
	@echo "== interpreted, with coverage"
	@test -n "$(KERNEL_TESTS)" || { echo "no tests of the kernel rooms" >&2; exit 1; }
	rm -f build/coverage build/coverage.*
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest -n auto $(KERNEL_TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(VENV)/installed-dev
	HYPOTHESIS_PROFILE=soak NUMBA_BOUNDSCHECK=1 $(PYTEST) -m "slow or not slow" tests

oracle: $(VENV)/installed-core
	$(BIN)/python -m shadowmmu.oracles.qemu.install

mutants: $(VENV)/installed-core
	$(BIN)/shadowmmu oracle mutants

bench: $(VENV)/installed-core
	@set -- benchmarks/bench_*.py; test -e "$$1" || { echo "no benchmarks/bench_*.py" >&2; exit 1; }; \
	for script in "$$@"; do echo "== $$script"; $(BIN)/python "$$script"; done

rig:
	@rig/build.sh "$${SHADOWMMU_RIG:-$${XDG_CACHE_HOME:-$$HOME/.cache}/shadowmmu-rig}"

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
