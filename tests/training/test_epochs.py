"""Conversion of epochs to steps, and the number of examples drawn."""

import json
import random

import numpy as np
import pytest

from malora_jax.training import run_config, train
from malora_jax.training.setup import Setup, build_setup
from tests.helpers.runs import STEPS, TASKS, toy_run_config

pytestmark = [pytest.mark.slow(start_first=True), pytest.mark.usefixtures('compile_quickly')]


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'data__weights': (1.0, 3.0)},
        {'training__accumulate': 3},
        {'data__batch_size': 4, 'data__streams': 2, 'data__workers': 2},
    ],
)
def test_epochs_come_to_that_many_examples(tiny_weights, changes):
    settings = {'training__steps': 0, 'training__epochs': 12.0, 'data__batch_size': 1, **changes}
    setup = build_setup(run_config(toy_run_config(tiny_weights, **settings)))
    assert setup.epoch_examples == 60
    data = setup.train_iterator()
    drawn = [next(data)['segment_ids'].max(axis=1).sum() for _ in range(setup.steps)]
    assert sum(drawn[:-1]) < 12 * 60 <= sum(drawn)
    assert sum(setup.draw_counts.examples) == sum(drawn)


def test_weights_belong_to_files_in_the_order_of_the_config(tiny_weights, tmp_path):
    for name in 'ab':
        rows = [{'question': f'{name} + {i}', 'answer': '2'} for i in range(4)]
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
    settings = {
        'data__tasks': (),
        'data__files': tuple(f'{name}={tmp_path}/{name}.jsonl' for name in 'ab'),
        'data__weights': (1.0, 3.0),
        'data__held_out': 1,
        'evaluation__tasks': ('b', 'a'),
    }
    setup = build_setup(run_config(toy_run_config(tiny_weights, **settings)))
    names = [split.task_name for split in setup.splits]
    assert dict(zip(names, setup.shares, strict=True)) == {'a': 0.25, 'b': 0.75}


def with_lengths(weights, directory, lengths, epochs, **changes) -> Setup:
    """Build a run on examples of about these lengths, with one row of 512 tokens per step."""
    rng = random.Random(0)
    path = directory / 'rows.jsonl'
    rows = [
        # ChatML's markup and the answer take 30 tokens.
        {'question': ''.join(rng.choices('0123456789', k=length - 30)), 'answer': '1'}
        for length in lengths
    ]
    path.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
    settings = {
        'data__tasks': (),
        'data__files': (str(path),),
        'data__max_per_task': 0,
        'data__held_out': 1,
        'data__sequence_length': 512,
        'training__steps': 0,
        'training__epochs': epochs,
        **changes,
    }
    return build_setup(run_config(toy_run_config(weights, **settings)))


@pytest.mark.parametrize(
    'lengths, epochs',
    [
        # Two examples do not fit into a row of 512.
        (lambda rng: rng.randint(270, 330), 1.0),
        (lambda rng: 300, 3.0),
        # Rows fuller than usual.
        (lambda rng: 60, 3.0),
    ],
)
def test_epochs_do_not_depend_on_how_full_rows_are(tiny_weights, tmp_path, lengths, epochs):
    rng = random.Random(0)
    lengths = [lengths(rng) for _ in range(1001)]
    setup = with_lengths(tiny_weights, tmp_path, lengths, epochs, data__batch_size=4)
    data = setup.train_iterator()
    drawn = [int(next(data)['segment_ids'].max(axis=1).sum()) for _ in range(setup.steps)]
    assert setup.epoch_examples == 1000
    assert sum(drawn[:-1]) < epochs * 1000 <= sum(drawn)


def test_a_run_of_one_epoch_draws_the_examples_once(tiny_weights, tmp_path, capfd):
    settings = {'training__steps': 0, 'training__epochs': 2.0, 'training__checkpoint_every': 100}
    config = toy_run_config(tiny_weights, **settings)
    results = train(config, tmp_path / 'run')
    records = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').open()]
    last = records[-1]
    drawn = [last[f'examples/{task}'] for task in TASKS]
    assert 120 <= sum(drawn) < 120 + sum(drawn) / len(records) * 2
    assert records[-2]['epoch'] < 2 <= last['epoch'] == results['epochs']
    told = next(line for line in capfd.readouterr().out.splitlines() if 'draw' in line)
    assert told.startswith(f'{last["step"]} steps of 2 rows of 96 tokens, ')
    tasks = ', '.join(f'{t} {n} ({n / 30:.2f})' for t, n in zip(TASKS, drawn, strict=True))
    assert told.endswith(f'draw {sum(drawn)} examples ({last["epoch"]:.2f} epochs): {tasks}.')


def test_of_many_steps_the_first_ones_are_counted(tiny_weights, monkeypatch):
    monkeypatch.setattr('malora_jax.training.setup._MAX_COUNTED_EXAMPLES', 50)
    setup = build_setup(run_config(toy_run_config(tiny_weights, training__steps=10**9)))
    assert setup.describe_draws().startswith('1,000,000,000 steps of 2 rows of 96 tokens, about ')


def test_what_was_drawn_is_counted(finished_workdir, results, tiny_weights):
    records = [json.loads(line) for line in (finished_workdir / 'metrics.jsonl').open()]
    setup = build_setup(run_config(toy_run_config(tiny_weights)))
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
