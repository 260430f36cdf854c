# Everything from nothing: each target sets up what it needs in .venv and does so once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LOG := $(VENV)/setup.log
JOBS ?= 2
SOURCES := $(shell find csrc -type f) setup.py

.PHONY: help setup demo complexity test test-quick sanitize fuzz bench bench-quick report lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## / - /'

# What pip says goes to a log, and to the terminal where it fails.
quietly = >> $(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }

$(VENV)/.ready: pyproject.toml constraints.txt $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit("kdkernels needs Python >= 3.10: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	@echo "Installing packages into $(VENV) and compiling the extension: some minutes the first time ($(LOG))"
	@mkdir -p $(VENV) && : > $(LOG)
	@$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV) $(quietly)
	@$(RUN) -m pip install --upgrade "pip>=23.2" -c constraints.txt $(quietly)
	@$(RUN) -m pip install -c constraints.txt -e ".[demo,dev,triton]" $(quietly)
	@touch $@

setup: $(VENV)/.ready  ## a virtual environment with the pinned packages and the compiled extension

demo: setup  ## distil a digits classifier with several losses: a table and two pictures (CPU, under 5 minutes)
	$(RUN) -m kdkernels.demo

complexity: setup  ## how complex labels and teachers are for a student, over its training (CPU, under 5 minutes)
	$(RUN) -m kdkernels.demo.complexity

test: setup  ## every test, on two cores
	$(RUN) -m pytest -n $(JOBS) --dist loadfile

test-quick: setup  ## two minutes of tests: every test function that waits for no other program, with three of its cases
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --quick

sanitize: setup  ## the native kernels under address, undefined-behaviour and thread sanitizers (needs g++'s libraries)
	$(RUN) python_tests/fuzz_sanitized.py

fuzz: setup  ## a million random calls against the float64 oracle, about 20 minutes of two cores; SEED=7 START=250000 goes on
	$(RUN) python_tests/fuzz_drive.py $(if $(SEED),--seed $(SEED)) $(if $(START),--start $(START))

bench: setup  ## the microbenchmarks, under 10 minutes; results go to bench/results
	$(RUN) -m bench.run

bench-quick: setup  ## a minute of them
	$(RUN) -m bench.run --quick

report: setup  ## tables and plots from bench/results
	$(RUN) -m bench.report

lint: setup  ## what .ci/run checks before the tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES))

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(filter csrc/%,$(SOURCES))

clean:
	rm -rf build $(VENV) *.egg-info kdkernels/*.so
