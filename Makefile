# The single truth for set-up, training, tests and style. CI calls these targets and no others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
METHOD ?= malora
WORKDIR ?= runs/quickstart
# More arguments for the run, such as ARGS='--config.training.steps=20'.
ARGS ?=

# Tests of whole runs, many of them in processes of their own.
RUNS := tests/experiments tests/benchmark tests/training/test_loop.py tests/training/test_epochs.py \
  tests/training/test_validation.py tests/training/test_public_run.py tests/evaluation/test_harness.py \
  tests/models/test_generate.py tests/models/test_engine.py tests/serving tests/training/test_bfloat16.py tests/training/test_evaluate.py
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup train test test-runs lint format clean

setup: $(VENV)/ready

$(VENV)/ready: setup.cfg pyproject.toml requirements-quickstart.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or later is needed: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'No virtual environment: on Debian, apt-get install python3-venv.' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[quickstart,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-quickstart.txt
	@touch $@

# Fine-tunes SmolLM2-135M on the quickstart's tasks; again to resume.
train: setup
	$(BIN)/python -m experiments.train --config=configs/quickstart.py:$(METHOD) \
	  --workdir=$(WORKDIR) $(ARGS)

test: setup
	$(PYTEST) $(addprefix --ignore=,$(RUNS))

test-runs: setup
	$(PYTEST) $(RUNS)

# Style and types.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy malora_jax experiments configs

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
