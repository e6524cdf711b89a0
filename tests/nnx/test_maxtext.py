"""Adapters on a decoder of MaxText, if the environment has it (docs/guides/nnx.md)."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.linen.partitioning import axis_rules

from malora_jax.adapters import LowRankExperts
from malora_jax.nnx import adapt, balance_loss, routing_statistics, training_loss
from malora_jax.nnx.layers import adapter_layers
from tests.helpers.models import small_method

os.environ['DECOUPLE_GCLOUD'] = 'TRUE'  # No access to Google Cloud.
pyconfig = pytest.importorskip('maxtext.configs.pyconfig')

pytestmark = [pytest.mark.nnx, pytest.mark.usefixtures('compile_quickly')]

SIZES = dict(
    base_emb_dim=32, base_num_query_heads=4, base_num_kv_heads=2, base_mlp_dim=48, head_dim=8,
    base_num_decoder_layers=1, vocab_size=64, max_target_length=8, per_device_batch_size=2,
)  # fmt: skip
SETTINGS = dict(
    run_name='tiny', hardware='cpu', scan_layers='false', enable_checkpointing='false',
    skip_jax_distributed_system='true', log_config='false', attention='dot_product',
    dtype='float32', weight_dtype='float32', matmul_precision='highest',
)  # fmt: skip
TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
CONFIG = small_method('malora', targets=TARGETS, dropout=0.0, shared_rank=8)


@pytest.fixture
def model():
    from maxtext.utils import maxtext_utils, model_creation_utils

    base = pathlib.Path(pyconfig.__file__).parent / 'base.yml'
    values = [f'{name}={value}' for name, value in {**SIZES, **SETTINGS}.items()]
    config = pyconfig.initialize(['', str(base), *values])
    devices = maxtext_utils.create_device_mesh(config, jax.devices()[:1])
    mesh = jax.sharding.Mesh(devices, config.mesh_axes)
    jax.config.update('jax_numpy_rank_promotion', 'allow')
    with jax.set_mesh(mesh), axis_rules(config.logical_axis_rules):
        yield model_creation_utils.from_config(config, mesh=mesh, rngs=nnx.Rngs(0))
    jax.config.update('jax_numpy_rank_promotion', 'raise')


def test_a_decoder_of_maxtext_is_adapted_and_learns(model):
    base = nnx.to_flat_state(nnx.state(model, nnx.Param))
    before = {path: np.array(leaf[...]) for path, leaf in base}
    adapt(model, CONFIG, rngs=nnx.Rngs(1))
    layer = model.decoder.layers_0.self_attention.query
    rng = np.random.default_rng(0)
    layer.adapter.up[...] = rng.standard_normal(layer.adapter.up.shape).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((2, 8, 32), np.float32))
    added = layer(x) - type(layer).__mro__[1].__call__(layer, x)
    leaves = {name: getattr(layer.adapter, name)[...] for name in CONFIG.leaf_names}
    expected = LowRankExperts(CONFIG, 32).apply({'adapter': leaves}, x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(added, expected.reshape(added.shape), atol=1e-5)

    tokens = jnp.asarray(np.arange(16).reshape(2, 8))
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))

    def loss(model):
        ones = jnp.ones_like(tokens)
        logits = model(tokens, positions, decoder_segment_ids=ones, enable_dropout=False)
        scores = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()

    trained = nnx.DiffState(0, nnx.LoRAParam)
    step = nnx.jit(nnx.value_and_grad(training_loss(loss), argnums=trained))
    losses = []
    for _ in range(10):
        value, gradient = step(model)
        losses.append(float(value))
        own = nnx.state(model, nnx.LoRAParam)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.3 * g, own, gradient))
    assert losses[-1] < losses[0] - 0.2
    after = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    assert all(np.array_equal(before[path], after[path][...]) for path in before)
    assert len(dict(adapter_layers(model))) == len(routing_statistics(model)) == len(TARGETS)
    assert {float(sums.load.sum()) for sums in routing_statistics(model).values()} == {16 * 2}
    assert 0.5 < float(balance_loss(model)) < 4
