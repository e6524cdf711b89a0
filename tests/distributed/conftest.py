"""Processes in these tests mostly compile, so they do it quickly."""

import pathlib

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> pathlib.Path:
    """GGUF file with the tiny model's weights."""
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope='module', autouse=True)
def quick_commands(commands_compile_quickly):
    """Disable most compiler optimizations in all tests of this directory."""
