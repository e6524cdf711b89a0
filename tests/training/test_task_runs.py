"""Runs of a method with parameters for each task: training, resumption, evaluation and loading."""

import json
import re

import numpy as np
import pytest

import malora_jax
from malora_jax import training
from malora_jax.adapters.trees import named_leaves
from malora_jax.errors import UserError
from malora_jax.training.config import run_config
from malora_jax.training.evaluate import evaluate
from malora_jax.training.restore import saved_model
from tests.helpers.interrupted_runs import train_until
from tests.helpers.runs import TASKS, toy_run_config

pytestmark = pytest.mark.usefixtures('compile_quickly')


def config_of(weights, **changes):
    sizes = {'adapter__top_k': 4, 'adapter__shared_rank': 4, 'data__validation': 2}
    return toy_run_config(
        weights, 'mtl_lora', **(sizes | {'training__evaluate_every': 2} | changes)
    )


def test_the_tasks_are_those_of_the_data(tiny_weights):
    run = run_config(config_of(tiny_weights))
    assert run.adapter.tasks == run.task_names == tuple(TASKS)
    assert run.title.startswith('mtl_lora (num_experts=4, ') and 'tasks=' not in run.title
    with pytest.raises(UserError, match=re.escape('it must be (), or (')):
        run_config(config_of(tiny_weights, adapter__tasks=('x', 'y')))
    with pytest.raises(UserError, match=r'evaluation.tasks is .* it must be \(\) or tasks that'):
        run_config(config_of(tiny_weights, evaluation__tasks=(TASKS[0], 'chain_sum')))


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tiny_weights, tmp_path):
    config = config_of(tiny_weights)
    results = training.train(config, tmp_path / 'whole')
    train_until(config, tmp_path / 'resumed', step=4)
    again = training.train(config, tmp_path / 'resumed')
    assert again['tasks'] == results['tasks']
    adapters = [
        dict(named_leaves(saved_model(tmp_path / name).load().variables['adapter']))
        for name in ('whole', 'resumed')
    ]
    assert adapters[0].keys() == adapters[1].keys()
    for path, leaf in adapters[0].items():
        np.testing.assert_array_equal(leaf, adapters[1][path], err_msg=path)

    # The best checkpoint is scored with the LoRA of each task, and loaded for one of them.
    found = evaluate(config, tmp_path / 'whole')
    assert set(found['tasks']) == set(TASKS)
    for task in TASKS:
        assert found['tasks'][task]['score'] == results['tasks'][task]['after']
        model = malora_jax.load(tmp_path / 'whole', task=task)
        assert model.name == f'whole:{task}' and len(model.generate(['1 + 1?'])) == 1
    stored = json.loads((tmp_path / 'whole' / 'results.json').read_text())
    assert stored['adapter']['tasks'] == list(TASKS)
