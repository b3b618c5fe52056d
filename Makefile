# Two commands do all the set-up on a fresh machine: `make figure1` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY = passive

.PHONY: figure1 test lint fuzz torture clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

figure1: $(VENV)/.ready
	$(BIN)/overopt run quick --store runs --results results/quick
	$(BIN)/overopt figures results/quick --out figures
	$(BIN)/overopt fit results/quick

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# 100,000 damaged files and odd settings through every reader: no traceback, no hang, under 1 GB.
fuzz: $(VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz.py $(FUZZ_ARGS)

# Half an hour of kills, signals and races; alone on the machine.
torture: $(VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/torture.py $(TORTURE_ARGS)

clean:
	rm -rf runs results
