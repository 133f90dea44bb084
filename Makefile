# make demo   run the complete workflow on the demo data set   make test   run the test suite
# Both first create the environment in .venv if it does not exist. PYTHON=python3.12 selects the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard fastrcnn/ops/csrc/*)

.PHONY: demo test fuzz soak check format lint types bench wheel clean help

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo 'make check  check format, lint, types and tests              make format  format the code'
	@echo 'make bench  run the benchmarks                               make wheel   build dist/*.whl'
	@echo 'make fuzz   search for inputs that break the file readers    make soak    kill and resume runs 60 times'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is required, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo 'Installing packages. This takes a few minutes, because torch with its CUDA libraries is about 5.5 GB.'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/fastrcnn demo

# Test files run in parallel, with one single-threaded process per core. Files are not split, because their fixtures are
# expensive (they train models). The slowest files start first (tests/conftest.py).
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --hypothesis-profile=search --timeout=3600 -m hypothesis

soak: $(VENV)/.installed-dev
	$(BIN)/python scripts/soak.py
	$(BIN)/python scripts/soak_writes.py
	$(BIN)/python scripts/soak_torchrun.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types test

# BOXES=FILE.mat: use real boxes instead of random ones. DATA=FOLDER (VOC layout): use photographs, and also run
# bench_search.py on them.
bench: $(VENV)/.installed-dev
	$(BIN)/python scripts/bench_roi_pool.py $(if $(BOXES),--boxes $(BOXES))
	$(BIN)/python scripts/bench_detect.py $(if $(BOXES),--boxes $(BOXES))
	$(BIN)/python scripts/bench_train.py
	$(BIN)/python scripts/bench_pipeline.py $(if $(DATA),--data $(DATA))
	$(BIN)/python scripts/bench_proposals.py
	$(BIN)/python scripts/bench_scaling.py
	$(if $(DATA),$(BIN)/python scripts/bench_search.py $(DATA))

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find fastrcnn -name '*.so' -delete
