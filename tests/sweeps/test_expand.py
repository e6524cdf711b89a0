"""Expansion of a sweep into runs, and refused sweeps."""

import math

import pytest

from malora_jax.errors import UserError
from malora_jax.sweeps import expand
from tests.sweeps.helpers import ROOT, small_sweep_config


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def values(runs, *fields):
    return [tuple(run.values[field] for field in fields) for run in runs.values()]


def test_a_grid_is_every_combination_with_every_seed():
    grid = {'adapter': {'dropout': (0.0, 0.1)}, 'optimizer': {'learning_rate': (0.001, 0.01)}}
    found = expand(small_sweep_config(grid=grid))
    assert list(found)[:2] == [
        'malora-dropout0-learning_rate0.001-seed0',
        'malora-dropout0-learning_rate0.001-seed1',
    ]
    assert values(found, 'adapter.dropout', 'optimizer.learning_rate')[::2] == [
        *((0.0, 0.001), (0.0, 0.01)),
        *((0.1, 0.001), (0.1, 0.01)),
    ]
    config = found['malora-dropout0.1-learning_rate0.01-seed1'].config
    assert config['adapter']['dropout'] == 0.1
    assert config['optimizer']['learning_rate'] == 0.01
    assert config['seed'] == 1
    # Nothing else differs from the base config.
    config['adapter']['dropout'], config['optimizer']['learning_rate'] = 0.05, 0.001
    config['seed'] = 0
    from configs import quickstart

    assert config == quickstart.get_config('malora').to_dict()


def test_zipped_values_go_together_and_with_every_point_of_the_grid():
    together = {'adapter': {'alpha': (8.0, 16.0), 'beta': (0.5, 2.0)}}
    found = expand(small_sweep_config(zip=together, seeds=(3,)))
    assert values(found, 'optimizer.learning_rate', 'adapter.alpha', 'adapter.beta') == [
        *((0.001, 8.0, 0.5), (0.001, 16.0, 2.0)),
        *((0.01, 8.0, 0.5), (0.01, 16.0, 2.0)),
    ]


def test_a_run_with_values_of_its_own_has_no_others():
    ranks = {'adapter': {'rank': (3, 5), 'num_experts': (4, 2)}}
    runs = {'malora': {'arg': 'malora'}, 'molora': {'arg': 'molora', 'zip': ranks}}
    found = expand(small_sweep_config(runs=runs, seeds=(0,)))
    assert list(found) == [
        *('malora-learning_rate0.001-seed0', 'malora-learning_rate0.01-seed0'),
        *('molora-rank3-num_experts4-seed0', 'molora-rank5-num_experts2-seed0'),
    ]
    assert found['molora-rank5-num_experts2-seed0'].config['adapter']['rank'] == 5
    assert found['malora-learning_rate0.01-seed0'].config['adapter']['rank'] == 12


def test_values_of_a_run_that_go_together_are_as_many():
    ranks = {'adapter': {'rank': (3, 5), 'num_experts': (4,)}}
    with pytest.raises(UserError) as caught:
        expand(small_sweep_config(runs={'molora': {'arg': 'molora', 'zip': ranks}}))
    assert 'runs.molora.zip: all fields must have the same number of values' in str(caught.value)


def random_sweep(draws: int = 40, seed: int = 0, **fields):
    section = {'draws': draws, 'seed': seed, 'fields': fields}
    made = small_sweep_config(random=section, seeds=(0,))
    del made['grid']
    return made


def test_random_values_are_in_their_ranges_and_decided_by_the_seed():
    fields = {
        'optimizer': {'learning_rate': {'low': 1e-4, 'high': 1e-2, 'scale': 'log'}},
        'adapter': {'beta': {'low': 0.5, 'high': 2.0}, 'top_k': {'low': 1, 'high': 4}},
        'training': {'remat': ('light', 'full')},
    }
    found = expand(random_sweep(**fields))
    assert len(found) == 40
    rates = [rate for (rate,) in values(found, 'optimizer.learning_rate')]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    # About half of the values are below the geometric mean.
    assert 10 <= sum(math.log10(rate) < -3 for rate in rates) <= 30
    assert {k for (k,) in values(found, 'adapter.top_k')} == {1, 2, 3, 4}
    assert {remat for (remat,) in values(found, 'training.remat')} == {'light', 'full'}
    for name, run in found.items():
        assert f'learning_rate{run.values["optimizer.learning_rate"]}-' in name
    assert expand(random_sweep(**fields)) == found
    assert expand(random_sweep(seed=1, **fields)).keys() != found.keys()


def test_runs_times_points_times_seeds():
    runs = {
        'plain': {'arg': 'lora'},
        'wide': {'arg': 'malora', 'overrides': {'adapter': {'targets': ('q', 'v')}}},
    }
    found = expand(small_sweep_config(runs=runs))
    assert len(found) == 2 * 2 * 2
    assert found['wide-learning_rate0.01-seed0'].config['adapter']['targets'] == ('q', 'v')
    assert found['plain-learning_rate0.01-seed0'].config['method'] == 'lora'


def test_a_variant_may_have_seeds_of_its_own():
    runs = {'plain': {'arg': 'lora'}, 'more': {'arg': 'lora', 'seeds': (0, 7, 8)}}
    found = expand(small_sweep_config(runs=runs, grid={'adapter': {'rank': (8,)}}))
    assert [*found] == [
        *('plain-rank8-seed0', 'plain-rank8-seed1'),
        *('more-rank8-seed0', 'more-rank8-seed7', 'more-rank8-seed8'),
    ]
    assert found['more-rank8-seed7'].config['seed'] == 7


def test_fields_of_one_name_are_told_apart():
    grid = {'data': {'weights': ((), (1.0,) * 6)}, 'model': {'weights': ('a.gguf',)}}
    (first, *_) = expand(small_sweep_config(grid=grid, seeds=(0,)))
    assert first == 'malora-data.weights-model.weightsa.gguf-seed0'


# d = λ r N.


def ranks(run):
    adapter = run.config['adapter']
    return adapter['rank'], adapter['shared_rank'], adapter['alpha']


def test_the_subspace_follows_the_rank():
    """In Table 11, r = 4, 8, 16, 32 give r̄ = 6, 12, 24, 48 with d = 16, 32, 64, 128."""
    made = small_sweep_config(
        grid={'adapter': {'rank': (4, 8, 16, 32)}}, subspace_share=0.5, seeds=(0,)
    )
    found = expand(made)
    assert [ranks(run) for run in found.values()] == [
        *((6, 16, 12.0), (12, 32, 24.0), (24, 64, 48.0), (48, 128, 96.0))
    ]
    assert next(iter(found)) == 'malora-rank4-seed0'
    # A method without a subspace uses the rank itself.
    molora = expand(made | {'runs': {'molora': {'arg': 'molora'}}})
    assert [ranks(run)[:2] for run in molora.values()] == [(4, 0), (8, 0), (16, 0), (32, 0)]


def test_the_subspace_follows_the_number_of_experts():
    found = expand(
        small_sweep_config(
            grid={'adapter': {'num_experts': (4, 16)}}, subspace_share=0.5, seeds=(0,)
        )
    )
    assert [ranks(run)[:2] for run in found.values()] == [(12, 16), (12, 64)]


def test_the_subspace_stays_where_that_is_said():
    found = expand(
        small_sweep_config(grid={'adapter': {'rank': (8, 16)}}, subspace_share=0.0, seeds=(0,))
    )
    assert [ranks(run)[:2] for run in found.values()] == [(8, 32), (16, 32)]


# User errors.

RANKS = {'adapter': {'rank': (8, 16)}}


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'grdi': {}}, "Unknown field of the sweep 'grdi': did you mean grid?"),
        ({'grid': {}}, 'grid is empty: name a field with its values, or leave it out.'),
        (
            {'grid': {'adapter': {'rank': ()}}},
            'grid.adapter.rank is empty: give it at least one value.',
        ),
        (
            {'grid': {'adapter': {'rank': 4}}},
            'grid.adapter.rank is 4; it must be a tuple of values.',
        ),
        (
            {'grid': {'adapter': {'rnak': (4,)}}},
            "Unknown field of a run in the sweep 'adapter.rnak': did you mean adapter.rank",
        ),
        (
            {'grid': {'adapter': {'alpha': ('large',)}}},
            "adapter.alpha cannot be 'large' in the sweep: the base has 24.0 there.",
        ),
        (
            {'grid': {'adapter': {'dropout': (1.5,)}}},
            'malora-dropout1.5: adapter.dropout is 1.5; it must be at least 0 and below 1.',
        ),
        ({'grid': {'seed': (1, 2)}}, 'seed cannot be in grid, zip or random: set it in seeds.'),
        (
            {'zip': {'adapter': {'alpha': (8.0, 16.0), 'beta': (1.0,)}}},
            'zip: all fields must have the same number of values; adapter.alpha has 2, '
            'adapter.beta has 1.',
        ),
        (
            {'zip': {'optimizer': {'learning_rate': (0.1,)}}},
            'optimizer.learning_rate is in several of grid, zip and random: keep one.',
        ),
        (
            {'grid': {'optimizer': {'learning_rate': (0.1, 0.1)}}},
            'The sweep has the same values twice: optimizer.learning_rate = 0.1.',
        ),
        ({'grid': RANKS}, 'adapter.rank is swept, but the sweep does not say whether shared_rank'),
        (
            {'grid': {'adapter': {'rank': (8,), 'shared_rank': (16,)}}, 'subspace_share': 0.5},
            'adapter.shared_rank cannot be swept when subspace_share is set, which determines it.',
        ),
        (
            {'grid': {'adapter': {'rank': (7,)}}, 'subspace_share': 0.5},
            'subspace_share 0.5 with r = 7 and N = 8 makes r̄ 10.5; adapter.rank must be a whole',
        ),
        ({'subspace_share': 2.0}, 'subspace_share is 2.0; it must be at least 0 and below 1.'),
        ({'seeds': ()}, 'seeds is (); it must be a tuple of different whole numbers'),
        ({'seeds': 3}, 'seeds is 3; it must be a tuple of different whole numbers'),
        ({'seeds': (1, 1)}, 'seeds is (1, 1); it must be a tuple of different whole numbers'),
        (
            {'runs': {'a': {'arg': 'lora', 'seeds': ()}}},
            'runs.a.seeds is (); it must be a tuple of different whole numbers',
        ),
        ({'runs': {}}, 'runs is empty'),
        ({'runs': {'a': {}}}, 'runs.a.arg is None; it must be text in quotes.'),
        ({'runs': {'a': {'arg': 'malroa'}}}, "Unknown method 'malroa': did you mean"),
        ({'runs': {'a': {'arg': 'lora', 'x': 1}}}, "Unknown field of the run a 'x'"),
        ({'runs': {'a/b': {'arg': 'lora'}}}, "A name in runs is 'a/b'; it must be letters"),
        ({'base': 'configs/none.py'}, "base is 'configs/none.py': there is no such file."),
        ({'base': 3}, 'base is 3; it must be text in quotes.'),
        ({'report': {'table': 'table9'}}, "Unknown report.table 'table9'"),
        ({'report': {'metrics': ('f1',)}}, "Unknown metric in report.metrics 'f1'"),
        ({'report': {'plot': ()}}, "Unknown field of the report 'plot': did you mean plots?"),
        ({'random': {'draws': 0, 'seed': 0}}, 'random.draws is 0; it must be a whole number of'),
        ({'random': {'draws': 2, 'seed': 0}}, 'random.fields is empty'),
        (
            {'random': {'draws': 3, 'seed': 0, 'fields': {'adapter': {'beta': (1.0, 2.0)}}}},
            'random.draws is 3; only 2 different points were found in these ranges.',
        ),
        (
            {
                'random': {
                    **{'draws': 3, 'seed': 0},
                    'fields': {'adapter': {'beta': {'low': 0.0, 'high': 1.0, 'scale': 'log'}}},
                }
            },
            'random.fields.adapter.beta.low is 0.0; it must be below high, and positive',
        ),
    ],
)
def test_a_mistake_is_named(fields, message):
    with pytest.raises(UserError) as caught:
        expand(small_sweep_config(**fields))
    assert str(caught.value).startswith(message)


def test_a_config_that_is_no_sweep():
    with pytest.raises(UserError, match=r'^base is missing: a sweep names the config file'):
        expand({'seed': 0, 'method': 'lora'})
