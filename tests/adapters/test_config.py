"""Adapter settings of the methods: the table, overrides, and invalid settings."""

import dataclasses
import re

import pytest

from malora_jax import errors
from malora_jax.adapters import METHODS, method
from malora_jax.adapters.settings import AdapterSettings, migrate_settings, settings_of


def settings(name, **overrides):
    return settings_of(method(name, **overrides))


def test_table_holds_the_papers_settings():
    malora = settings('malora')
    assert (malora.num_experts, malora.top_k, malora.rank, malora.shared_rank) == (8, 2, 12, 32)
    assert (malora.alpha, method('malora').scale, malora.dropout) == (24, 2, 0.05)
    lora = settings('lora')
    assert (lora.rank, lora.alpha, method('lora').has_router) == (64, 128, False)
    small = settings('malora_small')
    assert (small.rank, small.shared_rank) == (8, 22)
    assert (settings('molora').rank, settings('molora').shared_rank) == (8, 0)
    assert (settings('asylora').rank, settings('asylora').frozen) == (128, ('down',))
    assert (settings('moasylora').rank, settings('moasylora').frozen) == (16, ('down',))
    assert all(method(name).scale == 2 for name in METHODS)
    assert all('o' not in method(name).targets for name in METHODS)


def test_rank_stabilized_scale_is_alpha_over_the_root_of_the_rank():
    assert method('lora', rank_stabilized=True).scale == 128 / 8
    assert method('malora', rank=16, alpha=8.0, rank_stabilized=True).scale == 2


def test_methods_differ():
    """No two method names have the same settings."""
    adapters = [method(name) for name in METHODS]
    assert len(set(adapters)) == len(METHODS) == 30


@pytest.mark.parametrize(
    ('name', 'overrides', 'message'),
    [
        ('malora', {'subspace': 'dwn'}, "Unknown adapter.subspace 'dwn': did you mean down"),
        ('molora', {'subspace': 'up'}, 'shared_rank is 0; it must be positive if subspace is'),
        ('malora_unshared', {'shared_rank': 20}, '0 or a multiple of num_experts = 8.'),
        ('hydralora', {'rank': 8}, 'shared_rank is 12; it must be equal to rank (8) if'),
        ('molora', {'magnitude': True}, 'magnitude is True; it must be False if num_experts'),
        ('malora', {'renormalize': True, 'equal_gates': True}, 'False with equal_gates'),
        ('malora', {'frozen': ('up',)}, "without 'up', which starts at zero"),
        ('malora_shared_up', {'frozen': ('shared_up',)}, "without 'shared_up', which starts at"),
        ('hydralora', {'equal_gates': True}, 'equal_gates is True; it must be False unless'),
        ('molora', {'equal_gates': True, 'balance_weight': 0.0}, 'equal_gates is True; it must'),
        ('lora', {'equal_gates': True}, 'equal_gates is True; it must be False unless'),
        ('lora', {'identical_start': True}, 'identical_start is True; it must be False unless'),
        ('hydralora', {'identical_start': True}, 'identical_start is True; it must be False'),
        ('dora', {'frozen': ('magnitud',)}, "'magnitud': did you mean magnitude?"),
        ('molora', {'experts_per_layer': (1, 8)}, 'numbers of at least 2, the largest of them'),
        ('molora', {'experts_per_layer': (2, 4)}, 'the largest of them num_experts = 8.'),
        ('hydralora', {'experts_per_layer': (0, 8)}, 'numbers of at least 1, the largest'),
        ('lora', {'experts_per_layer': (1, 1)}, 'it must be () for a single expert'),
        ('malora', {'scores': 'sigmod'}, "Unknown adapter.scores 'sigmod': did you mean sigmoid?"),
        ('malora', {'scores': 'sigmoid'}, 'renormalize is False; it must be True with adapter.sco'),
        ('lora', {'scores': 'threshold', 'renormalize': True, 'top_k': 2}, 'top_k is 2; it must'),
        ('malora', {'scores': 'magnitude', 'equal_gates': True}, "another unless subspace is 'ran"),
        ('malora', {'start': 'sparse'}, "start is 'sparse'; it must be another unless subspace is"),
        ('malora', {'start': 'dense'}, "Unknown adapter.start 'dense'"),
        ('malora', {'bias_rate': -1.0}, 'bias_rate is -1.0; it must be at least 0'),
        (
            'hydralora',
            {'bias_rate': 0.1},
            'bias_rate is 0.1; it must be 0 unless num_experts > top',
        ),
        ('adamole', {'bias_rate': 0.1}, "it must be 0 with adapter.scores = 'threshold'"),
        ('adamole', {'dispatch': True}, 'dispatch is True; it must be False unless num_experts >'),
        ('mtl_lora', {'rank': 8}, 'shared_rank is 30; it must be equal to rank (8) if subspace'),
        ('mtl_lora', {'top_k': 2}, 'top_k is 2; it must be equal to num_experts (3) if subspace'),
        ('mtl_lora', {'renormalize': True}, 'renormalize is True; it must be False if subspace is'),
        ('mtl_lora', {'tasks': ('a', 'a')}, 'it must be distinct names'),
        ('mtl_lora', {'task_temperature': 0.0}, 'task_temperature is 0.0; it must be positive'),
        ('mtl_lora', {'dispatch': True}, 'dispatch is True; it must be False unless num_experts'),
        ('mtl_lora', {'bias_rate': 0.1}, 'bias_rate is 0.1; it must be 0 unless'),
        ('mtl_lora', {'scores': 'sigmoid'}, 'renormalize is False; it must be True with'),
        ('mtl_lora', {'frozen': ('up',)}, "without 'up', which starts at zero"),
        ('malora', {'tasks': ('a',)}, "tasks is ('a',); it must be () unless subspace is 'tasks'"),
        ('lora', {'task_temperature': 0.1}, "is 0.1; it must be 1.0 unless subspace is 'tasks'"),
        ('smora', {'rank': 2}, "rank is 2; it must be 1 if subspace is 'ranks'"),
        ('malora', {'gates_sum_to_k': True}, 'gates_sum_to_k is True; it must be False without'),
        ('smora', {'num_experts': 8}, 'shared_rank is 44; it must be equal to num_experts (8) if'),
        ('smora', {'frozen': ('balance_bias',)}, "Unknown parameter in adapter.frozen 'balance_bi"),
        ('molora', {'samples': 2}, 'samples is 2; it must be 0 unless equal_gates is True'),
        ('remix', {'top_k': 8}, 'equal_gates is True; it must be False unless num_experts > top_k'),
        ('remix', {'frozen': ('router',)}, 'samples is 2; it must be 0 unless equal_gates is'),
        ('remix', {'samples': 1}, 'samples is 1; it must be 0, or at least 2: the router learns'),
        ('remix', {'samples': -2}, 'samples is -2; it must be 0, or at least 2: the router'),
        ('remix', {'samples': 0}, 'equal_gates is True; it must be False unless num_experts >'),
        ('malora', {'num_up_experts': 4}, 'num_up_experts is 4; it must be 0 if shared_rank > 0'),
        ('molora', {'num_up_experts': 1}, 'num_up_experts is 1; it must be 0 or at least 2.'),
        (
            'd2mora',
            {'start': 'svd'},
            'num_up_experts is 8; it must be 0 if shared_rank > 0 or start',
        ),
        ('d2mora', {'start': 'sdv'}, "Unknown adapter.start 'sdv': did you mean svd"),
        ('d2mora', {'tasks': ('a',)}, "it must be () unless subspace is 'tasks'"),
        ('lora', {'num_up_experts': 4}, 'num_experts is 1; it must be at least 2 if num_up'),
        ('d2mora', {'dispatch': True}, "subspace is 'down', num_up_experts is 0"),
        ('d2mora', {'router_input': 'first'}, "router_input is 'first'; it must be 'x' unless"),
        (
            'lora',
            {'similarity_weight': 0.1},
            'similarity_weight is 0.1; it must be at least 0, and',
        ),
        ('molora', {'similarity_weight': -0.1}, 'similarity_weight is -0.1; it must be at least'),
        ('goat', {'experts_per_layer': (4, 8)}, "it must be () if start is 'svd'"),
        ('goat', {'renormalize': False}, "it must be True if start is 'svd'"),
        ('goat', {'dispatch': True}, "start is 'random' and scores is not"),
        ('goat', {'shared_rank': 8}, "start is 'svd'; it must be 'random' with shared_rank > 0"),
        ('goat', {'identical_start': True}, "it must be 'random' with shared_rank > 0, magnitude"),
        ('lora', {'start': 'svd'}, "start is 'svd'; it must be 'random' for a single expert."),
        ('molora', {'start': 'sdv'}, "Unknown adapter.start 'sdv': did you mean svd"),
        ('goat', {'frozen': ('router', 'down', 'up')}, 'a proper subset of the parameters'),
        ('malora', {'bias_in_gates': True}, 'bias_in_gates is True; it must be False unless bias'),
        ('flylora', {'bias_in_gates': True}, 'False unless bias_rate > 0 and equal_gates is False'),
        ('adamole', {'bias_in_gates': True}, 'bias_in_gates is True; it must be False unless'),
        ('flylora', {'bias_target': 'shre'}, "Unknown adapter.bias_target 'shre': did you mean sh"),
        ('malora', {'bias_target': 'share'}, "'share'; it must be 'mean' unless bias_rate > 0."),
        ('adamole', {'balance_scores': 'distances'}, "Unknown adapter.balance_scores 'distances'"),
        (
            'malora',
            {'balance_scores': 'distance'},
            "is 'distance'; it must be 'probability' unless scores is 'threshold' and balance_wei",
        ),
        (
            'adamole',
            {'balance_scores': 'distance', 'balance_weight': 0.0},
            "balance_scores is 'distance'; it must be 'probability' unless",
        ),
        ('molora', {'width_scale': False}, "is False; it must be True unless start is 'svd'."),
        ('malora', {'bias_in_gates': 1}, 'adapter.bias_in_gates is 1; it must be '),
        ('mlora_heads', {'rank': 8}, 'shared_rank is 20; it must be equal to rank (8) if subspace'),
        ('mlora_heads', {'shared_rank': 0}, "it must be positive if subspace is 'summed_heads'"),
        ('mlora_heads', {'top_k': 2}, "equal to num_experts (5) if subspace is 'summed_heads'"),
        ('mlora_heads', {'renormalize': True}, "False if subspace is 'summed_heads', which uses"),
        ('mlora_heads', {'equal_gates': True}, "False if subspace is 'summed_heads', which uses"),
        ('mlora_heads', {'head_dropout': 1.0}, 'head_dropout is 1.0; it must be at least 0 and'),
        ('mlora_heads', {'head_dropout': -0.1}, 'head_dropout is -0.1; it must be at least 0 and'),
        ('hydralora', {'head_dropout': 0.2}, "is 0.2; it must be 0.0 unless subspace is 'summed_"),
        ('lora', {'head_dropout': 0.2}, 'head_dropout is 0.2; it must be 0.0 unless subspace is'),
        ('alora', {'dropout_masks': 'experts'}, "Unknown adapter.dropout_masks 'experts': did you"),
        (
            'malora',
            {'dropout_masks': 'expert'},
            "dropout_masks is 'expert'; it must be 'shared' unless several experts have down-proj",
        ),
        ('lora', {'dropout_masks': 'expert'}, "it must be 'shared' unless several experts have"),
        ('smora', {'dropout_masks': 'expert'}, "it must be 'shared' unless several experts have"),
        ('molora_dispatch', {'dropout_masks': 'expert'}, 'of their own, and dispatch is False.'),
        ('lora', {'router_dropout': True}, 'router_dropout is True; it must be False without a'),
        ('mtl_lora', {'router_dropout': True}, 'it must be False without a router, or if dropout_'),
        (
            'alora',
            {'router_dropout': True, 'dropout_masks': 'expert'},
            "router_dropout is True; it must be False without a router, or if dropout_masks is 'ex",
        ),
        ('comol', {'router_dropout': True}, "it must be False if router_input is 'first' or scor"),
        ('flylora', {'router_dropout': True}, "it must be False if router_input is 'first' or sc"),
        ('comol', {'core_dropout': 1.0}, 'core_dropout is 1.0; it must be at least 0 and below 1'),
        ('comol', {'core_dropout': -0.1}, 'core_dropout is -0.1; it must be at least 0 and below'),
        ('moslora', {'core_dropout': 0.1}, 'core_dropout is 0.1; it must be 0.0 for a single exp'),
        ('malora', {'core_dropout': 0.1}, "is 0.1; it must be 0.0 unless subspace is 'both'."),
        ('mlora_heads', {'scores': 'sigmoid', 'renormalize': True}, "it must be 'softmax'"),
        ('mlora_heads', {'bias_rate': 0.1}, 'bias_rate is 0.1; it must be 0 unless num_experts >'),
        ('mlora_heads', {'dispatch': True}, 'dispatch is True; it must be False unless num_expe'),
        ('mlora_heads', {'identical_start': True}, 'identical_start is True; it must be False'),
        ('mlora_heads', {'experts_per_layer': (2, 5)}, 'it must be () for a single expert'),
        ('mlora_heads', {'similarity_weight': 0.1}, 'similarity_weight is 0.1; it must be at'),
        ('mlora_heads', {'num_up_experts': 4}, 'num_up_experts is 4; it must be 0 if shared_rank'),
        ('mlora_heads', {'start': 'svd'}, "start is 'svd'; it must be 'random' with shared_rank"),
        ('mlora_heads', {'start': 'sparse'}, "start is 'sparse'; it must be another unless"),
        ('mlora_heads', {'frozen': ('residual_up',)}, "Unknown parameter in adapter.frozen 'resid"),
        ('mlora_heads', {'frozen': ('shared_down', 'up')}, 'a proper subset of the parameters'),
    ],
)
def test_settings_that_contradict_each_other_are_refused(name, overrides, message):
    with pytest.raises(errors.UserError, match=re.escape(message)):
        method(name, **overrides)


@pytest.mark.parametrize(
    ('name', 'form'),
    [
        ('smora', {'bias_in_gates': True}),
        ('flylora', {'bias_target': 'share'}),
        ('adamole', {'balance_scores': 'distance'}),
        ('goat', {'width_scale': False}),
        ('alora', {'dropout_masks': 'expert'}),
        ('smora', {'router_dropout': True}),
        ('comol', {'core_dropout': 0.05}),
    ],
)
def test_forms_of_published_code_are_settings(name, form):
    adapter, paper = method(name, **form), settings(name)
    ((field, value),) = form.items()
    assert getattr(paper, field) == getattr(AdapterSettings(1, 1, 1, 1.0), field) != value
    assert settings_of(adapter) == dataclasses.replace(paper, **form)
    assert settings_of(adapter).build() == adapter != method(name)
    # Configs of earlier runs do not have the field.
    stored = dataclasses.asdict(paper)
    del stored[field]
    assert AdapterSettings(**migrate_settings(stored)).build() == method(name)


def test_equal_gates_with_a_router_that_learns_or_is_frozen():
    assert settings('malora', equal_gates=True).equal_gates
    assert settings('hydralora', equal_gates=True, frozen=('router',)).equal_gates
    assert settings('molora', equal_gates=True, balance_weight=0.0, samples=2).samples == 2


def test_experts_per_layer_are_repeated_for_consecutive_layers():
    adapter = method('molora', experts_per_layer=(2, 4, 6, 8))
    assert adapter.layer_experts(8).tolist() == [2, 2, 4, 4, 6, 6, 8, 8]
    assert method('molora').layer_experts(3).tolist() == [8, 8, 8]
    with pytest.raises(errors.UserError, match='as many numbers as divide the 6 layers into equal'):
        adapter.layer_experts(6)


def test_alpha_follows_the_rank_unless_given():
    assert method('malora', rank=6).alpha == 12
    assert method('malora', rank=6, alpha=24.0).scale == 4


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'rank': '8'}, "adapter.rank is '8'; it must be a whole number."),
        ({'rank': 0}, 'adapter.rank is 0; it must be at least 1.'),
        ({'top_k': 9}, 'adapter.top_k is 9; it must be at most num_experts = 8.'),
        ({'top_k': 0}, 'adapter.top_k is 0; it must be at least 1.'),
        ({'num_experts': 0}, 'adapter.num_experts is 0; it must be at least 1.'),
        ({'shared_rank': 4}, 'adapter.shared_rank is 4; it must be 0 or at least rank = 12.'),
        ({'alpha': 0.0}, 'adapter.alpha is 0.0; it must be positive.'),
        ({'beta': float('nan')}, 'adapter.beta is nan; it must be a finite number.'),
        ({'dropout': 1.0}, 'adapter.dropout is 1.0; it must be at least 0 and below 1.'),
        ({'balance_weight': -1.0}, 'adapter.balance_weight is -1.0; it must be at least 0.'),
        ({'top_k': 1, 'renormalize': True}, 'adapter.renormalize is True; it must be False when'),
        ({'targets': ('q', 'x')}, "Unknown linear layer in adapter.targets 'x'"),
        ({'frozen': ('cor',)}, "Unknown parameter in adapter.frozen 'cor': did you mean core?"),
        ({'rnk': 3}, "Unknown adapter field 'rnk': did you mean rank"),
    ],
)
def test_mistakes_name_the_field_and_what_would_be_right(overrides, message):
    with pytest.raises(errors.UserError, match=re.escape(message)):
        method('malora', **overrides)


def test_unknown_method_names_the_near_ones():
    with pytest.raises(errors.UserError, match=r"'malroa': did you mean malora"):
        method('malroa')


@pytest.mark.parametrize('saved, meant', [('', False), ('batched', True)])
def test_how_earlier_runs_named_dispatch(saved, meant):
    fields = migrate_settings({'rank': 8, 'dispatch': saved})
    assert method('malora', **fields) == method('malora', rank=8, dispatch=meant)
