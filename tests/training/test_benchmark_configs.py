"""Configs of the benchmarks of recent papers: valid for every method, with their recipes."""

import pytest

from configs import code, code_small, commonsense, commonsense_small, math, math_small
from malora_jax.adapters import METHODS
from malora_jax.data.datasets import get_dataset
from malora_jax.runs.published import PUBLISHED_TABLES
from malora_jax.training.config import run_config

CONFIGS = {
    'commonsense': (commonsense, commonsense_small),
    'math': (math, math_small),
    'code': (code, code_small),
}
# Methods whose experts belong to the tasks that are trained on.
TASK_METHODS = {'mtl_lora'}


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('size', [0, 1])
def test_every_method_has_a_config(name, size):
    for method in METHODS.keys() - TASK_METHODS:
        run = run_config(CONFIGS[name][size].get_config(method).to_dict())
        assert run.data.form == 'llm_adapters'
        assert {*run.evaluation.tasks} == {*PUBLISHED_TABLES[name].tasks}
        assert run.model.name == (
            'smollm2-135m' if size else 'qwen3-8b' if name == 'code' else 'llama2-7b'
        )


@pytest.mark.parametrize('name', CONFIGS)
def test_all_splits_exist(name):
    config = CONFIGS[name][0].get_config('malora')
    assert all('train' in get_dataset(task).splits for task in config.data.tasks)
    assert all('test' in get_dataset(task).splits for task in config.evaluation.tasks)


def test_ranks_and_alpha_are_published_ones():
    adapter = run_config(commonsense.get_config('lora').to_dict()).adapter
    assert (adapter.structure.rank, adapter.alpha) == (64, 128)
    adapter = run_config(math.get_config('lora').to_dict()).adapter
    assert (adapter.structure.rank, adapter.alpha) == (32, 64)
    adapter = run_config(code.get_config('comol').to_dict()).adapter
    assert (adapter.structure.rank, adapter.alpha) == (16, 16)
