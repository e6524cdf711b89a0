import pathlib
import sys

import pytest
from tiny_gguf import write_tiny_gguf

from malora_jax.models import preset
from malora_jax.models.loading.weights import Base, load_base

ROOT = pathlib.Path(__file__).parents[2]
# For model_helpers, and for configs/, which is not installed.
sys.path[:0] = [str(ROOT / 'tests' / 'models'), str(ROOT)]


@pytest.fixture(scope='session')
def tiny_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope='session')
def tiny_base(tiny_weights) -> Base:
    return load_base(preset('tiny'), str(tiny_weights))
