import pathlib

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> pathlib.Path:
    """GGUF file with the tiny model's weights."""
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path
