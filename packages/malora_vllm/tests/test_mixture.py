"""Refusals of the `mixture` block."""

import pytest
import tiny_llama

from malora_vllm.mixture import Mixture, parse_mixture

TARGETS = (
    'a list without repeats from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj'
)


def block(**changes):
    return {**tiny_llama.adapter_config('softmax')['mixture'], **changes}


def test_valid_block():
    mixture = parse_mixture(block())
    targets = tuple(tiny_llama.ADAPTERS['softmax']['targets'])
    assert mixture == Mixture(8, 12, 2, 2.0, 'softmax', targets, 2)
    assert mixture.total_rank == 112


def test_whole_scale_is_a_number():
    assert parse_mixture(block(scale=3)).scale == 3.0


def test_fingerprint_may_be_unknown():
    parse_mixture(block(base={'name': 'tiny', 'fingerprint': None}))


def test_newer_version():
    with pytest.raises(ValueError, match=r'version is 2, .* reads version 1: upgrade malora_vllm'):
        parse_mixture(block(version=2))


def test_newer_version_may_have_other_fields():
    with pytest.raises(ValueError, match='upgrade malora_vllm'):
        parse_mixture({'version': 3})


def test_too_many_experts():
    with pytest.raises(ValueError, match=r'num_experts is 65, .* at most 64 experts: train'):
        parse_mixture(block(num_experts=65))


@pytest.mark.parametrize('field', sorted(block()))
def test_missing_field(field):
    fields = block()
    del fields[field]
    with pytest.raises(ValueError, match=rf'has no mixture\.{field}, .*: export the adapter again'):
        parse_mixture(fields)


@pytest.mark.parametrize('field', ['name', 'fingerprint'])
def test_missing_field_of_base(field):
    base = block()['base']
    del base[field]
    with pytest.raises(ValueError, match=rf'has no mixture\.base\.{field}, .*: export'):
        parse_mixture(block(base=base))


@pytest.mark.parametrize(
    ('field', 'value', 'expected'),
    [
        ('version', '1', 'a positive integer'),
        ('version', True, 'a positive integer'),
        ('method', 7, 'a non-empty string'),
        ('method', '', 'a non-empty string'),
        ('num_experts', 8.0, 'a positive integer'),
        ('num_experts', 0, 'a positive integer'),
        ('rank', '12', 'a positive integer'),
        ('rank', -1, 'a positive integer'),
        ('top_k', 0, 'an integer from 1 to num_experts = 8'),
        ('top_k', 9, 'an integer from 1 to num_experts = 8'),
        ('top_k', None, 'an integer from 1 to num_experts = 8'),
        ('scale', '2', 'a finite positive number'),
        ('scale', 0, 'a finite positive number'),
        ('scale', float('nan'), 'a finite positive number'),
        ('scale', float('inf'), 'a finite positive number'),
        pytest.param('scale', 10**400, 'a finite positive number', id='scale-10**400'),
        ('scale', -2, 'a finite positive number'),
        ('scale', True, 'a finite positive number'),
        ('gates', 'sigmoid', 'one of softmax, renormalized, equal'),
        ('gates', ['softmax'], 'one of softmax, renormalized, equal'),
        ('targets', 'q_proj', TARGETS),
        ('targets', [], TARGETS),
        ('targets', [1], TARGETS),
        ('targets', [['q_proj']], TARGETS),
        ('targets', ['q_proj', 'lm_head'], TARGETS),
        ('targets', ['q_proj', 'q_proj'], TARGETS),
        ('router_parts', 3, '1 or 2'),
        ('router_parts', False, '1 or 2'),
        ('base', 'tiny', 'an object'),
    ],
)
def test_invalid_field(field, value, expected):
    with pytest.raises(ValueError, match=rf'has mixture\.{field} = .*, which must be {expected}: '):
        parse_mixture(block(**{field: value}))


@pytest.mark.parametrize(
    ('field', 'value', 'expected'),
    [
        ('name', 3, 'a non-empty string'),
        ('fingerprint', 'xyz', '32 hexadecimal digits or null'),
        ('fingerprint', 5, '32 hex'),
    ],
)
def test_invalid_field_of_base(field, value, expected):
    base = {**block()['base'], field: value}
    with pytest.raises(ValueError, match=rf'has mixture\.base\.{field} = .* must be {expected}'):
        parse_mixture(block(base=base))


@pytest.mark.parametrize('value', [None, [], 'malora'])
def test_block_is_not_an_object(value):
    with pytest.raises(ValueError, match=r'has mixture = .*, which must be an object: export'):
        parse_mixture(value)
