# The single truth for set-up, training, tests and style. CI calls these targets and no others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
METHOD ?= malora
WORKDIR ?= runs/quickstart
# More arguments for the run, such as ARGS='--config.training.steps=20'.
ARGS ?=

# Tests of whole runs, many of them in processes of their own.
# The longest first, as each file is run by one process.
RUNS := tests/test_notebooks.py tests/experiments tests/benchmark \
  $(addprefix tests/training/test_,loop.py epochs.py identity.py validation.py public_run.py) \
  tests/evaluation/test_harness.py tests/evaluation/test_layer_mutations.py \
  tests/models/test_generate.py tests/models/test_engine.py tests/models/test_quantize.py tests/export tests/serving tests/training/test_bfloat16.py tests/training/test_evaluate.py tests/training/test_chat_runs.py \
  $(addprefix tests/ultralink/test_ultralink_,whole.py commands.py release_commands.py local.py kills.py) \
  tests/models/test_remat.py $(addprefix tests/training/test_,hyperparameters.py fit.py accumulation.py) \
  tests/training/test_faults.py tests/training/test_bucket_runs.py tests/analysis/test_report.py \
  tests/analysis/test_alike.py tests/analysis/test_routed.py \
  tests/sweeps/test_joint_step.py tests/sweeps/test_joint.py
# Tests on several devices and in several processes.
DEVICES := $(addprefix tests/distributed/test_,sharded_steps.py sharded_runs.py hosts.py)
# Tests with the TPU's compiler.
COMPILED := tests/training/test_topology.py
# Seeded fuzzing of requests, files, run directories, command lines and signals.
FUZZ := tests/fuzz
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup train test test-runs test-devices test-tpu test-fuzz test-export lint format clean

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
	$(PYTEST) $(addprefix --ignore=,$(RUNS) $(DEVICES) $(COMPILED) $(FUZZ))

test-runs: setup
	$(PYTEST) $(RUNS)

test-devices: setup
	$(PYTEST) $(DEVICES)

# Long runs outside CI: .venv/bin/python -m pytest tests/fuzz --fuzz-minutes=30 --fuzz-seed=1
test-fuzz: setup
	$(PYTEST) $(FUZZ)

# No TPU is needed. The compiler lies beside the environment, in which JAX would look for a TPU at
# every start; its version is the one that JAX names.
test-tpu: setup
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/tpu \
	  "$$($(BIN)/python -c 'from importlib.metadata import requires; print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))')"
	PYTHONPATH=$(VENV)/tpu $(PYTEST) $(COMPILED)

# Exports, loaded by transformers and peft, which lie in an environment of their own.
test-export: setup
	$(PYTHON) -m venv $(VENV)/transformers
	$(VENV)/transformers/bin/python -m pip install --quiet 'torch >= 2.6, < 3' 'transformers >= 5, < 6' 'peft >= 0.19, < 1'
	TRANSFORMERS_PYTHON=$(CURDIR)/$(VENV)/transformers/bin/python $(PYTEST) tests/export/test_prompts.py

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
