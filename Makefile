# Everything from nothing: each target sets up what it needs in .venv and does so once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= 2
SOURCES := $(shell find csrc -type f) setup.py

.PHONY: help setup demo complexity test test-quick sanitize fuzz bench bench-quick report lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## / - /'

$(VENV)/.packages: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=23.2" -c constraints.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,dev,triton]"
	touch $@ $(VENV)/.extension

$(VENV)/.extension: $(VENV)/.packages $(SOURCES)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt -e .
	touch $@

setup: $(VENV)/.extension  ## a virtual environment with the pinned packages and the compiled extension

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

fuzz: setup  ## a million random calls against the float64 oracle, about an hour of two cores; SEED=7 START=250000 goes on
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
