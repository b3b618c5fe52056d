# Two commands do all the set-up on a fresh machine: `make figure1` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY = passive

.PHONY: figure1 test lint clean

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

clean:
	rm -rf runs results
