import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope='session')
def tiny_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path
