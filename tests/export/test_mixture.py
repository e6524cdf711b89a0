"""Mixtures for other programs: dense experts, and the files for `transformers` and vLLM."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from malora_jax.adapters import LowRankExperts, method
from malora_jax.adapters.dense import fold
from malora_jax.errors import UserError
from malora_jax.export import fingerprints, huggingface_names, safetensors_files
from malora_jax.export.mixture import mixture_block
from malora_jax.export.trained_model import TrainedAdapter
from malora_jax.export.transformers_mixture import write_transformers_mixture
from malora_jax.export.vllm_mixture import write_vllm_mixture
from malora_jax.models import Decoder, preset
from malora_jax.models.loading.params import to_huggingface
from tests.export.helpers import restored_model, tiny_base
from tests.helpers import reference
from tests.helpers.models import STRUCTURES, small_method, tiny_model

# Other programs know neither a second router, as D²MoRA has, nor other scores than a softmax.
ROUTED = [
    name
    for name in STRUCTURES
    if small_method(name).has_router
    and small_method(name).router.scores == 'softmax'
    and name != 'd2mora'
]
# Equal gates need a load-balancing loss.
CASES = [
    (name, changes)
    for name in ROUTED
    for changes in ({}, {'renormalize': True}, {'equal_gates': True}, {'rank_stabilized': True})
    if 'equal_gates' not in changes
    or (
        small_method(name).router.balance_weight > 0
        and small_method(name).router.gates != 'renormalized'
    )
]
CASES.append(('remix', {}))
TOKENS, INPUTS, OUTPUTS = 20, 14, 12


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp('base'))


def mixture(base, name: str = 'malora', **changes):
    return restored_model(name, *base, **changes)


def without_base(trained) -> TrainedAdapter:
    fingerprint = fingerprints.base_fingerprint(trained.base.params)
    return TrainedAdapter(
        trained.model, trained.variables, trained.method, trained.weights, 7, fingerprint
    )


def gated_sum(x_ND, down_ERD, up_EFR, router_ED, config):
    """Compute s · Σ_t G_t(x) B_t A_t x with dense experts, in float64.

    Experts that the router does not know are those of a residual, whose gate is 1.
    """
    settings = dict(
        K=config.router.top_k,
        renormalize=config.router.gates == 'renormalized',
        equal_gates=config.router.gates == 'equal',
    )
    gates_NE = np.stack([reference.gates(x, router_ED, **settings) for x in x_ND])
    residual = len(up_EFR) - len(router_ED)
    gates_NE = np.pad(gates_NE, ((0, 0), (0, residual)), constant_values=1)
    each_NEF = np.einsum('efr,erd,nd->nef', up_EFR, down_ERD, x_ND)
    return reference.scale(config) * np.einsum('ne,nef->nf', gates_NE, each_NEF)


@pytest.mark.parametrize('name, changes', CASES)
def test_dense_experts_compute_the_update(name, changes):
    check_dense_experts(small_method(name, **changes))


@pytest.mark.parametrize('name', ['malora', 'hydralora'])
def test_a_router_on_the_subspace_becomes_one_on_the_input(name):
    check_dense_experts(small_method(name, router_input='first'))


def check_dense_experts(config):
    module = LowRankExperts(config, features=OUTPUTS)
    rng = np.random.default_rng(1)
    x_ND = jnp.asarray(rng.normal(size=(TOKENS, INPUTS)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x_ND)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    leaves = {
        name: np.asarray(leaf.unbox(), np.float64)[None]
        for collection in variables.values()
        for name, leaf in collection.items()
    }
    experts = fold(config, leaves)
    found = gated_sum(
        np.asarray(x_ND, np.float64),
        experts.down[0].swapaxes(1, 2),
        experts.up[0].swapaxes(1, 2),
        experts.router[0].T,
        config,
    )
    expected = module.apply(variables, x_ND)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_single_expert_has_a_router_of_zeros():
    config = method('malora', num_experts=1, top_k=1, rank=3, shared_rank=4, balance_weight=0.0)
    rng = np.random.default_rng(0)
    shapes = {'shared_down': (2, 6, 4), 'core': (2, 1, 4, 3), 'up': (2, 1, 3, 5)}
    experts = fold(config, {name: rng.normal(size=shape) for name, shape in shapes.items()})
    assert experts.down.shape == (2, 1, 6, 3) and experts.up.shape == (2, 1, 3, 5)
    assert experts.router.shape == (2, 6, 1) and not experts.router.any()


def test_files_for_transformers(base, tmp_path):
    trained = mixture(base)
    write_transformers_mixture(trained, tmp_path / 'whole')
    write_transformers_mixture(trained, tmp_path / 'alone', adapter_only=True)
    both = [
        json.loads((tmp_path / name / 'config.json').read_text()) for name in ('whole', 'alone')
    ]
    assert both[0] == both[1]
    assert both[0]['model_type'] == 'mixture_llama'
    assert both[0]['architectures'] == ['MixtureLlamaForCausalLM']
    assert both[0]['mixture'] == {
        'version': 1,
        'method': 'malora',
        'num_experts': 4,
        'rank': 4,
        'top_k': 2,
        'scale': 2.0,
        'gates': 'softmax',
        'targets': ['q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj', 'down_proj'],
        'router_parts': 1,
        'base': {
            'name': base[1],
            'fingerprint': fingerprints.base_fingerprint(trained.base.params),
        },
    }
    whole = safetensors.numpy.load_file(tmp_path / 'whole' / 'model.safetensors')
    alone = safetensors.numpy.load_file(tmp_path / 'alone' / 'mixture.safetensors')
    own = to_huggingface(trained.model.config, trained.base.params)
    assert len(whole) == len(alone) + len(own)
    for name, tensor in alone.items():
        np.testing.assert_array_equal(whole[name], tensor, strict=True)
        assert tensor.dtype == np.float32
    for name, tensor in own.items():
        module, _, leaf = name.rpartition('.')
        kept = whole.get(name, whole.get(f'{module}.base.{leaf}'))
        np.testing.assert_array_equal(kept, tensor, strict=True)
    assert 'model.layers.1.self_attn.o_proj.weight' in whole
    assert 'model.layers.1.mlp.up_proj.base.weight' in whole
    for name in ('tokenizer.json', 'generation_config.json'):
        assert (tmp_path / 'alone' / name).exists()


def test_large_exports_have_several_files(base, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, 'MAX_BYTES', 100_000)
    write_transformers_mixture(mixture(base), tmp_path / 'out')
    index = json.loads((tmp_path / 'out' / 'model.safetensors.index.json').read_text())
    files = sorted((tmp_path / 'out').glob('model-*.safetensors'))
    assert len(files) > 2 and {*index['weight_map'].values()} == {path.name for path in files}
    for path in files:
        tensors = safetensors.numpy.load_file(path)
        assert {*tensors} == {
            name for name, file in index['weight_map'].items() if file == path.name
        }
        assert sum(each.nbytes for each in tensors.values()) <= 100_000 or len(tensors) == 1


def test_files_for_vllm(base, tmp_path):
    trained = mixture(base)
    write_vllm_mixture(without_base(trained), tmp_path / 'out')
    config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
    assert config['mixture']['router_parts'] == 2
    assert 'r' not in config and 'lora_alpha' not in config
    tensors = safetensors.numpy.load_file(tmp_path / 'out' / 'adapter_model.safetensors')
    name = 'base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight'
    down_PD, up_FP = (tensors[name.format(each)].astype(np.float64) for each in 'AB')
    E, R = 4, 4
    assert down_PD.shape[0] == up_FP.shape[1] == E * (R + 2)
    assert not up_FP[:, E * R :].any()
    rounded_ED, rest_ED = down_PD[E * R : E * R + E], down_PD[E * R + E :]
    np.testing.assert_array_equal(rounded_ED.astype(jnp.bfloat16).astype(np.float64), rounded_ED)
    assert 0 < np.abs(rest_ED).max() < 2**-8 * np.abs(rounded_ED).max()
    adapter = trained.variables['adapter']['layers']['attention']['q']
    np.testing.assert_allclose((rounded_ED + rest_ED).T, adapter['router'][1], rtol=1e-6)
    # The experts' products are those of the paper's factors.
    leaves = {key: np.asarray(leaf[1], np.float64) for key, leaf in adapter.items()}
    for t in range(E):
        expected = reference.expert_matrix(t, leaves, trained.model.adapter)
        found = up_FP[:, t * R : (t + 1) * R] @ down_PD[t * R : (t + 1) * R]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_quantized_base_has_no_fingerprint_for_vllm(base, tmp_path):
    trained = without_base(mixture(base))
    model = Decoder(preset('tiny', quantize='int8'), trained.model.adapter)
    write_vllm_mixture(trained._replace(model=model), tmp_path / 'out')
    config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
    assert config['mixture']['base'] == {'name': trained.weights, 'fingerprint': None}


@pytest.mark.parametrize(
    'weights, name',
    [
        ('', 'HuggingFaceTB/SmolLM2-135M-Instruct'),
        ('someone/other', 'someone/other'),
        ('models/mine.gguf', 'models/mine.gguf'),
    ],
)
def test_the_base_is_named_by_its_weights(base, weights, name):
    trained = without_base(mixture(base))._replace(
        model=Decoder(preset('smollm2-135m')), weights=weights
    )
    assert huggingface_names.base_name(trained) == name


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('lora', {}, 'lora is a single LoRA, not a routed mixture: use --format=peft, merged or '),
        ('malora', {'step': 0}, 'The run has made 0 steps and its update is zero'),
    ],
)
def test_mistakes(base, tmp_path, name, changes, message):
    trained = mixture(base, name, **changes)
    with pytest.raises(UserError, match=message):
        write_transformers_mixture(trained, tmp_path / 'out')
    with pytest.raises(UserError, match=message):
        write_vllm_mixture(without_base(trained)._replace(step=trained.step), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def assert_formats_are_refused(trained, message, output):
    with pytest.raises(UserError, match=f'--format=transformers {message}'):
        write_transformers_mixture(trained, output)
    with pytest.raises(UserError, match=f'--format=vllm {message}'):
        write_vllm_mixture(without_base(trained), output)
    assert not output.exists()


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('d2mora', {}, 'd2mora cannot be exported as vllm: a second router weights'),
        ('goat', {}, '--format=vllm has no place for the frozen residual of goat'),
        ('malora', {'bias_rate': 0.1}, '--format=vllm needs the gates of a softmax without a bias'),
        ('malora', {'scores': 'absolute'}, '--format=vllm needs the gates of a softmax without'),
        *(
            (name, {}, '--format=vllm needs the gates of a softmax')
            for name in ('adamole', 'smora', 'flylora')
        ),
    ],
)
def test_more_than_a_softmax_router_is_refused_for_vllm(base, tmp_path, name, changes, message):
    trained = mixture(base, name)
    model = tiny_model(small_method(name, **changes))
    with pytest.raises(UserError, match=message):
        write_vllm_mixture(without_base(trained._replace(model=model)), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'name, changes, expected',
    [
        ('malora', {'bias_rate': 0.1}, {'kind': 'softmax', 'has_offset': True}),
        (
            'malora',
            {'bias_rate': 0.1, 'bias_in_gates': True, 'renormalize': True},
            {'has_offset': True, 'offset_in_gates': True},
        ),
        ('malora', {'scores': 'absolute'}, {'kind': 'softmax', 'scores': 'absolute'}),
        ('adamole', {}, {'scores': 'threshold', 'has_offset': True}),
        ('smora', {}, {'scores': 'sigmoid', 'has_offset': True, 'factor': 2}),
        ('goat', {}, {'num_residual_experts': 4}),
        ('d2mora', {}, {'kind': 'softmax', 'num_up_experts': 8}),
    ],
)
def test_gates_with_more_settings_than_a_kind(base, name, changes, expected):
    trained = mixture(base, name)
    model = tiny_model(small_method(name, **changes))
    block = mixture_block(trained._replace(model=model), None, 1)
    assert block['scale'] == model.adapter.scale
    assert (
        block['gates']
        == {
            'kind': 'renormalized',
            'scores': 'softmax',
            'factor': 1,
            'has_offset': False,
            'offset_in_gates': False,
            'num_residual_experts': 0,
            'num_up_experts': 0,
        }
        | expected
    )


def test_layers_with_different_numbers_of_experts_are_refused(base, tmp_path):
    model = tiny_model(small_method('molora', experts_per_layer=(2, 4)))
    trained = mixture(base, 'molora')._replace(model=model)
    message = 'needs the same number of experts in every layer'
    assert_formats_are_refused(trained, message, tmp_path / 'out')
