"""Epochs as a number of steps, and the count of what was drawn."""

import json

import numpy as np
import pytest
from loop_helpers import STEPS, TASKS, run_settings

from malora_jax.training import run_config
from malora_jax.training.setup import build


@pytest.mark.parametrize('shares', [{}, {'data__weights': (1.0, 3.0)}])
def test_epochs_come_to_that_many_examples(tiny_weights, shares):
    settings = {'training__steps': 0, 'training__epochs': 12.0, 'data__batch_size': 1, **shares}
    setup = build(run_config(run_settings(tiny_weights, **settings)))
    assert setup.epoch_examples == 60
    data = setup.train_iterator()
    drawn = sum(next(data)['segment_ids'].max(axis=1).sum() for _ in range(setup.steps))
    # As packing fills as much as is assumed, but for short rows.
    assert drawn / 60 == pytest.approx(12.0, rel=0.08)


def test_what_was_drawn_is_counted(finished, results, tiny_weights):
    records = [json.loads(line) for line in (finished / 'metrics.jsonl').open()]
    setup = build(run_config(run_settings(tiny_weights)))
    data, drawn = setup.train_iterator(), np.zeros(2, int)
    for record, _ in zip(records, range(STEPS), strict=True):
        batch = next(data)
        for row in range(len(batch['inputs'])):
            for segment in range(1, batch['segment_ids'][row].max() + 1):
                (task,) = {*batch['task_ids'][row][batch['segment_ids'][row] == segment]}
                drawn[task] += 1
        assert [record[f'examples/{task}'] for task in TASKS] == drawn.tolist()
        assert record['epoch'] == pytest.approx(drawn.sum() / 60)
    assert results['epochs'] == records[-1]['epoch']
    for task, count, size in zip(TASKS, drawn, setup.sizes, strict=True):
        kept = results['training_data'][task]
        assert (kept['examples'], kept['tokens']) == (30, size.tokens)
        assert kept['epochs'] == pytest.approx(count / 30)
