# Two commands do all the set-up on a fresh machine: `make figure1` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY = passive

.PHONY: figure1 test test-long cluster test-cluster lint browser trackers docs fuzz torture clean

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

# Kills, races and several processes: what takes minutes and seldom breaks.
test-long: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m long $(PYTEST_ARGS)

# What `make test-cluster` needs, where this machine lets us have it: Debian's packages of SLURM (as
# root), and Ray; without one its tests are skipped.
cluster: $(VENV)/.ready
	command -v slurmctld >/dev/null \
		|| (apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge) \
		|| echo "no SLURM here: tests marked slurm are skipped"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]' \
		|| echo "no Ray here: tests marked ray are skipped"

# Clusters of two nodes on this machine, bound to the loopback address: SLURM, which needs root, and Ray.
test-cluster: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slurm or ray" tests/pipeline/test_slurm.py \
		tests/pipeline/test_ray.py $(PYTEST_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# What the tests of `overopt report` need; without it they are skipped.
browser: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	command -v chromium || (apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium) \
		|| echo "no Chromium here: tests of the page are skipped"

# What the tests of `--track trackio` and `--track mlflow` need; without it they are skipped. The small
# MLflow with what its SQLite store needs, 150 MB at most, in place of the whole.
trackers: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[trackers]'

# The documents as a site in build/site; a link that leads nowhere is an error.
docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	rm -rf build/docs && for f in $$(git ls-files '*.md' 'figures/*.png' 'experiments/results/*.png' LICENSE); do \
		mkdir -p "build/docs/$$(dirname $$f)" && cp "$$f" "build/docs/$$f"; done
	$(BIN)/mkdocs build --strict --quiet

# 100,000 damaged files and odd settings through every reader: no traceback, no hang, under 1 GB.
fuzz: $(VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz.py $(FUZZ_ARGS)

# 100 kills, 35 kills of workers and signals, 100 races; half an hour of CPU time, alone on the machine.
torture: $(VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/torture.py $(TORTURE_ARGS)

clean:
	rm -rf runs results
