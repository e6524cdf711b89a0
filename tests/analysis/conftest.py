import pathlib
import sys
from typing import NamedTuple

import jax
import pytest

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / part) for part in ('adapters', 'models', 'training')]

from loop_helpers import run_settings  # noqa: E402
from tiny_gguf import write_tiny_gguf  # noqa: E402

from malora_jax import training  # noqa: E402


class Runs(NamedTuple):
    """Directories of short runs on the tiny model; for reading only."""

    mixed: pathlib.Path
    alone: pathlib.Path
    reverse: pathlib.Path
    lora: pathlib.Path
    weights: pathlib.Path


@pytest.fixture(scope='session')
def runs(tmp_path_factory) -> Runs:
    """Two tasks with MALoRA, each of them alone, and LoRA; the names have to be escaped."""
    home = tmp_path_factory.mktemp('runs')
    weights = home / 'tiny.gguf'
    write_tiny_gguf(weights)
    changes = {
        'mixed <b>&': ('malora', {'training__checkpoint_every': 2}),
        'alone': ('malora', {'data__tasks': ('toy_copy',), 'training__steps': 2}),
        'reverse': ('malora', {'data__tasks': ('toy_reverse',), 'training__steps': 2}),
        'lora': ('lora', {'training__steps': 2}),
    }
    jax.config.update('jax_disable_most_optimizations', True)
    for name, (method, changed) in changes.items():
        training.train(run_settings(weights, method, **changed), home / name)
    jax.config.update('jax_disable_most_optimizations', False)
    return Runs(*(home / name for name in changes), weights)
