import pathlib
import sys

import pytest
from tiny_gguf import write_tiny_gguf

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / 'models'), str(TESTS / 'training')]


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> pathlib.Path:
    """Of the tiny model."""
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path
