"""Files for commands that train on a user's file of sums, with a tiny model."""

import json
import pathlib

from tests.helpers.tiny_gguf import write_tiny_gguf

_BASE = """
from configs import your_tasks


def get_config(arg='malora'):
    config = your_tasks.get_config(arg)
    config.model.name = 'tiny'
    config.model.weights = '{home}/tiny.gguf'
    config.data.files = ('{home}/sums.jsonl',)
    config.data.held_out = 4
    config.data.validation = 2
    config.data.sequence_length = 64
    config.data.batch_size = 1
    config.adapter.rank = 2
    if config.adapter.shared_rank:
        config.adapter.shared_rank = 4
    config.optimizer.clip_norm = {clip_norm}
    config.training.steps = {steps}
    config.training.checkpoint_every = {checkpoint_every}
    config.training.evaluate_every = {evaluate_every}
    config.evaluation.max_new_tokens = 4
    return config
"""
_SWEEP = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.base = '{home}/base.py'
    config.seeds = {seeds}
    config.runs = {{'malora': {{'arg': 'malora'}}}}
    {grid}
    return config
"""


def write_sums_task(
    home: pathlib.Path,
    steps: int,
    checkpoint_every: int,
    evaluate_every: int,
    clip_norm: float = 1.0,
) -> None:
    """Write tiny.gguf, sums.jsonl and base.py, a config that trains on them."""
    write_tiny_gguf(home / 'tiny.gguf')
    rows = [json.dumps({'question': f'{n} + 1?', 'answer': str(n + 1)}) for n in range(40)]
    (home / 'sums.jsonl').write_text('\n'.join(rows))
    text = _BASE.format(
        home=home,
        steps=steps,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        clip_norm=clip_norm,
    )
    (home / 'base.py').write_text(text)


def write_sweep(path: pathlib.Path, seeds: tuple[int, ...], grid: str = '') -> None:
    """Write a sweep of MALoRA with the base.py next to it.

    Args:
        path: Config file to write.
        seeds: Seeds of the sweep.
        grid: Python text of the sweep's grid; '' for none.
    """
    line = f'config.grid = {grid}' if grid else ''
    path.write_text(_SWEEP.format(home=path.parent, seeds=seeds, grid=line))
