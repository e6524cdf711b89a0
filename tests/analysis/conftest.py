import pathlib
from typing import NamedTuple

import pytest

from malora_jax import training
from tests.helpers.compiling import few_optimizations
from tests.helpers.runs import toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf


class Runs(NamedTuple):
    """Directories of short runs on the tiny model; tests must not change them.

    Attributes:
        mixed: MALoRA on two tasks.
        alone: MALoRA on the first task alone.
        reverse: MALoRA on the second task alone.
        lora: LoRA on both tasks.
        weights: GGUF file of the base model.
    """

    mixed: pathlib.Path
    alone: pathlib.Path
    reverse: pathlib.Path
    lora: pathlib.Path
    weights: pathlib.Path


@pytest.fixture(scope='session')
def runs(tmp_path_factory) -> Runs:
    """MALoRA on two tasks and on each alone, and LoRA; one name needs escaping in HTML."""
    home = tmp_path_factory.mktemp('runs')
    weights = home / 'tiny.gguf'
    write_tiny_gguf(weights)
    changes = {
        'mixed <b>&': ('malora', {'training__checkpoint_every': 2}),
        'alone': ('malora', {'data__tasks': ('toy_copy',), 'training__steps': 2}),
        'reverse': ('malora', {'data__tasks': ('toy_reverse',), 'training__steps': 2}),
        'lora': ('lora', {'training__steps': 2}),
    }
    with few_optimizations():
        for name, (method, changed) in changes.items():
            training.train(toy_run_config(weights, method, **changed), home / name)
    return Runs(*(home / name for name in changes), weights)
