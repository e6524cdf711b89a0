import pytest
from tiny_models import gates_object, mixture_block, tiny_config

from mixture_transformers.schema import Gates, parse_mixture

BASE = {'name': 'base', 'fingerprint': '0' * 32}
INVALID = {
    'version': [({'version': 'x'}, "mixture.version is 'x'; it must be a positive integer:")],
    'numbers': [
        ({'num_experts': 0}, 'mixture.num_experts is 0; it must be a positive integer:'),
        ({'num_experts': True}, 'mixture.num_experts is True; it must be a positive integer:'),
        ({'rank': 2.0}, 'mixture.rank is 2.0; it must be a positive integer:'),
        ({'top_k': '2'}, "mixture.top_k is '2'; it must be a positive integer:"),
        ({'top_k': 6}, 'mixture.top_k is 6; it must be at most num_experts = 5:'),
        ({'scale': None}, 'mixture.scale is None; it must be a finite positive number:'),
        ({'scale': float('nan')}, 'mixture.scale is nan; it must be a finite positive number:'),
        ({'scale': float('inf')}, 'mixture.scale is inf; it must be a finite positive number:'),
        ({'scale': 10**400}, '00; it must be a finite positive number:'),
        ({'scale': 0}, 'mixture.scale is 0; it must be a finite positive number:'),
        ({'scale': -1.5}, 'mixture.scale is -1.5; it must be a finite positive number:'),
        ({'scale': True}, 'mixture.scale is True; it must be a finite positive number:'),
        ({'router_parts': 2}, 'mixture.router_parts is 2; it must be 1:'),
        ({'router_parts': True}, 'mixture.router_parts is True; it must be 1:'),
    ],
    'gates': [
        ({'gates': gates_object(kind='hard')}, "gates.kind is 'hard'; it must be one of softmax,"),
        ({'gates': gates_object(scores='tanh')}, "scores is 'tanh'; it must be one of softmax, si"),
        ({'gates': gates_object(factor=0)}, 'gates.factor is 0; it must be a positive integer:'),
        ({'gates': gates_object(has_offset=1)}, 'has_offset is 1; it must be true or false:'),
        ({'gates': gates_object(offset_in_gates=0)}, 'in_gates is 0; it must be true or false:'),
        ({'gates': gates_object(num_residual_experts=-1)}, '-1; it must be an integer of at least'),
        ({'gates': gates_object(num_up_experts=True)}, 'True; it must be an integer of at least 0'),
        ({'gates': {'kind': 'softmax'}}, 'config.json has no field mixture.gates.scores:'),
    ],
    'names': [
        ({'method': ''}, "mixture.method is ''; it must be a non-empty string:"),
        ({'gates': 'hard'}, "gates is 'hard'; it must be one of softmax, renormalized, equal:"),
        ({'gates': ['softmax']}, "mixture.gates is ['softmax']; it must be one of softmax,"),
        ({'targets': []}, 'mixture.targets is []; it must be a list without repeats from q_proj,'),
        ({'targets': ['lm_head']}, "mixture.targets is ['lm_head']; it must be a list"),
        ({'targets': ['q_proj', 'q_proj']}, "is ['q_proj', 'q_proj']; it must be a list without"),
        ({'targets': 'q_proj'}, "mixture.targets is 'q_proj'; it must be a list"),
        ({'targets': ('q_proj',)}, "mixture.targets is ('q_proj',); it must be a list"),
    ],
    'base': [
        ({'base': 'x'}, "mixture.base is 'x'; it must be an object:"),
        ({'base': {'name': 'x'}}, 'config.json has no field mixture.base.fingerprint:'),
        ({'base': BASE | {'name': 1}}, 'mixture.base.name is 1; it must be a non-empty string:'),
        ({'base': BASE | {'fingerprint': 'x'}}, "is 'x'; it must be 32 hexadecimal digits:"),
    ],
}


@pytest.mark.parametrize(
    ('fields', 'message'), [case for cases in INVALID.values() for case in cases]
)
def test_an_invalid_field_is_refused_in_one_sentence(fields, message):
    with pytest.raises(ValueError) as caught:
        tiny_config('Llama', mixture_block(**fields))
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert str(caught.value).endswith(': export the model again.')
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize('name', mixture_block())
def test_a_missing_field_is_named(name):
    block = mixture_block()
    del block[name]
    with pytest.raises(
        ValueError, match=rf'^config\.json has no field mixture\.{name}: export the model again\.$'
    ):
        parse_mixture(block)


def test_another_version_asks_for_an_upgrade():
    with pytest.raises(ValueError) as caught:
        parse_mixture({'version': 2, 'anything': 'else'})
    assert str(caught.value) == (
        'config.json: mixture.version is 2, but this release of mixture_transformers reads '
        'version 1: upgrade mixture_transformers.'
    )


def test_without_a_block_there_is_no_mixture():
    with pytest.raises(ValueError, match=r'has no object `mixture`: load .* --format=transformers'):
        parse_mixture(None)


@pytest.mark.parametrize('name', gates_object())
def test_a_missing_setting_of_the_gates_is_named(name):
    gates = gates_object()
    del gates[name]
    with pytest.raises(ValueError, match=rf'has no field mixture\.gates\.{name}: export the model'):
        parse_mixture(mixture_block(gates=gates))


def test_the_fields_are_read():
    mixture = parse_mixture(mixture_block(scale=2, targets=['q_proj', 'down_proj']))
    assert (mixture.num_experts, mixture.rank, mixture.top_k) == (5, 3, 2)
    assert (mixture.scale, mixture.gates) == (2.0, Gates('softmax'))
    assert list(mixture.module_names(1)) == [
        *('model.layers.0.self_attn.q_proj', 'model.layers.0.mlp.down_proj')
    ]
