"""Configs of the fair comparison: every method builds, and those that are compared are one size."""

import dataclasses

import pytest
from flax import linen as nn

from configs import fair_comparison, fair_real_tasks, intra_domain_small
from configs.sweeps import fair_methods, fair_task_counts
from malora_jax.adapters import method, trees
from malora_jax.adapters.settings import settings_of, with_tasks
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.sweeps import expand
from malora_jax.training.config import run_config
from tests.helpers.models import METHOD_NAMES
from tests.helpers.paths import ROOT

BUDGETS = {'fair_methods': 18.93e6, 'fair_real_tasks': 5.4e6}
# Rows whose subject is size, and rows that do not train their routers.
OTHER_SIZES = (
    *('malora_small', 'molora_r12', 'molora_same_down', 'lora_active_rank', 'lora_total_rank'),
    *('molora_frozen_router', 'malora_frozen_router'),
)


def trained(run):
    variables = nn.unbox(abstract_variables(Decoder(run.model, run.adapter)))
    return trees.count(variables['adapter'])


@pytest.mark.parametrize('method_name', METHOD_NAMES)
@pytest.mark.parametrize('config', [fair_comparison, fair_real_tasks])
def test_only_the_size_of_the_adapter_differs_from_the_method(config, method_name):
    run = run_config(config.get_config(method_name).to_dict())
    assert run.method == method_name
    named = dataclasses.asdict(settings_of(with_tasks(method(method_name), run.adapter.tasks)))
    own = dataclasses.asdict(settings_of(run.adapter))
    changes = {name for name, value in own.items() if value != named[name]}
    # The intra-domain configs have the β of the paper's Table 9.
    allowed = {'rank', 'shared_rank', 'num_experts', 'alpha'}
    assert changes <= allowed | ({'beta'} if config is fair_real_tasks else set())
    assert trained(run) > 10**5


def test_the_rows_of_the_methods_have_one_size(monkeypatch):
    monkeypatch.chdir(ROOT)
    sizes = {
        run.variant: trained(run_config(run.config))
        for name, run in expand(fair_methods.get_config().to_dict()).items()
        if name.endswith('-seed0')
    }
    by_task = sum(size for name, size in sizes.items() if name.startswith('by_task-'))
    sizes = {name: size for name, size in sizes.items() if not name.startswith('by_task-')}
    sizes['by_task'] = by_task
    for name in OTHER_SIZES:
        del sizes[name]
    assert len(sizes) >= 20
    for name, size in sizes.items():
        assert size == pytest.approx(BUDGETS['fair_methods'], rel=0.03), name


def test_the_methods_on_real_tasks_have_one_size():
    for name in fair_task_counts.METHODS:
        run = run_config(fair_real_tasks.get_config(name).to_dict())
        assert trained(run) == pytest.approx(BUDGETS['fair_real_tasks'], rel=0.03)
        ranks = intra_domain_small.RANKS[name]
        assert (run.adapter.structure.rank, run.adapter.structure.subspace_rank) == ranks
