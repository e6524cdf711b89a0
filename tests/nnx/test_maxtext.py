"""Adapters on a decoder of MaxText, if the environment has it (docs/guides/nnx.md)."""

import contextlib
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.linen.partitioning import axis_rules

from malora_jax.adapters import LowRankExperts
from malora_jax.adapters.trees import count
from malora_jax.nnx import adapt, balance_loss, routing_statistics, training_loss
from malora_jax.nnx.layers import adapter_layers
from tests.helpers.models import small_method
from tests.nnx.helpers import arrays

os.environ['DECOUPLE_GCLOUD'] = 'TRUE'  # No access to Google Cloud.
pyconfig = pytest.importorskip('maxtext.configs.pyconfig')
train_sft = pytest.importorskip('maxtext.trainers.post_train.sft.train_sft')

pytestmark = [pytest.mark.nnx, pytest.mark.usefixtures('compile_quickly')]

B, T, D = 4, 8, 32
SIZES = dict(
    base_emb_dim=D, base_num_query_heads=4, base_num_kv_heads=2, base_mlp_dim=48, head_dim=8,
    base_num_decoder_layers=1, vocab_size=64, max_target_length=T,
)  # fmt: skip
SETTINGS = dict(
    run_name='tiny', hardware='cpu', scan_layers='false', skip_jax_distributed_system='true',
    log_config='false', attention='dot_product', dtype='float32', weight_dtype='float32',
    matmul_precision='highest', packing='false', checkpoint_period=10, eval_interval=100,
)  # fmt: skip
TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
CONFIG = small_method('malora', targets=TARGETS, dropout=0.0, shared_rank=8)
TOKENS = np.arange(T) + np.arange(B)[:, None]
BATCH = {
    f'{name}{field}': value
    for name, tokens in (('inputs', TOKENS), ('targets', TOKENS + 1))
    for field, value in {
        '': tokens,
        '_position': np.broadcast_to(np.arange(T), (B, T)),
        '_segmentation': np.ones((B, T), int),
    }.items()
}


@pytest.fixture(autouse=True)
def allow_promotion():
    """Let MaxText's models broadcast arrays of different ranks."""
    jax.config.update('jax_numpy_rank_promotion', 'allow')
    yield
    jax.config.update('jax_numpy_rank_promotion', 'raise')


@contextlib.contextmanager
def adapted_model(directory: pathlib.Path, steps: int = 20, devices: int = 1):
    """Give MaxText's config and an adapted model on MaxText's mesh, which is active."""
    from maxtext.utils import maxtext_utils, model_creation_utils

    base = pathlib.Path(pyconfig.__file__).parent / 'post_train' / 'sft.yml'
    own = dict(base_output_directory=directory, steps=steps, per_device_batch_size=B // devices)
    values = [f'{name}={value}' for name, value in {**SIZES, **SETTINGS, **own}.items()]
    config = pyconfig.initialize(['', str(base), *values])
    grid = maxtext_utils.create_device_mesh(config, jax.devices()[:devices])
    mesh = jax.sharding.Mesh(grid, config.mesh_axes)
    model = model_creation_utils.from_pretrained(config, mesh)
    with jax.set_mesh(mesh), axis_rules(config.logical_axis_rules):
        adapt(model, CONFIG, rngs=nnx.Rngs(1))
        yield config, model


def trainer_of(config, model: nnx.Module):
    settings = train_sft.get_tunix_config(config)
    trainer = train_sft.MaxTextPeftTrainer(model, optax.adam(1e-2), settings)
    trainer = train_sft.use_maxtext_loss_function(trainer, config)
    trainer.loss_fn = training_loss(trainer.loss_fn)
    return trainer


def test_each_layer_adds_the_update_of_low_rank_experts(tmp_path):
    with adapted_model(tmp_path) as (_, model):
        rng, formula = np.random.default_rng(0), 0
        for path, layer in adapter_layers(model):
            module = model
            for name in path.split('/'):
                module = getattr(module, name)
            N, F = layer.linear.num_inputs, layer.linear.num_outputs
            layer.up[...] = rng.standard_normal(layer.up.shape).astype(np.float32)
            x = jnp.asarray(rng.standard_normal((2, 3, N), np.float32))
            given = x.reshape(2, 3, 4, 8) if path.endswith('out') else x
            added = module(given) - type(module).__mro__[1].__call__(module, given)
            leaves = {name: getattr(layer, name)[...] for name in CONFIG.leaf_names}
            expected = LowRankExperts(CONFIG, F).apply({'adapter': leaves}, x)
            assert np.abs(expected).max() > 0.1
            np.testing.assert_allclose(added, expected.reshape(added.shape), atol=1e-5)
            E, R, S = CONFIG.num_experts, CONFIG.structure.rank, CONFIG.structure.subspace_rank
            formula += N * E + N * S + E * S * R + E * R * F
        assert len(dict(adapter_layers(model))) == len(TARGETS)
        assert count(nnx.state(model, nnx.LoRAParam)) == formula


def test_the_trainer_trains_only_the_adapter_and_resumes(tmp_path):
    with adapted_model(tmp_path / 'whole') as (config, model):
        before = arrays(model)
        trainer = trainer_of(config, model)
        loss = nnx.jit(trainer.eval_loss_fn)
        start = float(loss(model, **BATCH)[0])
        trainer.train([BATCH] * 20)
        assert float(loss(model, **BATCH)[0]) < start - 1
        whole = arrays(model)
        changed = {path for path in before if not np.array_equal(before[path], whole[path])}
        assert changed == {*arrays(model, nnx.LoRAParam)}
        assert 0.5 < float(balance_loss(model)) < 4
        tokens = {float(sums.load.sum()) for sums in routing_statistics(model).values()}
        assert tokens == {B * T * CONFIG.router.top_k}
    for steps in (10, 20):
        with adapted_model(tmp_path / 'parts', steps) as (config, model):
            trainer = trainer_of(config, model)
            assert trainer.train_steps == steps - 10
            trainer.train([BATCH] * 20)
            parts = arrays(model)
    assert all(np.array_equal(whole[path], leaf) for path, leaf in parts.items())


def test_a_sharded_run_equals_a_run_on_one_device(tmp_path):
    if len(jax.devices()) < 4:
        pytest.skip('needs four devices: XLA_FLAGS=--xla_force_host_platform_device_count=4')
    results = []
    for devices in (1, 4):
        with adapted_model(tmp_path / str(devices), 3, devices) as (config, model):
            up = model.decoder.layers_0.mlp.wi_1
            axes = {leaf[...].sharding.spec[0] for leaf in (up.kernel, up.adapter.shared_down)}
            assert axes == {'fsdp' if devices > 1 else None}
            trainer_of(config, model).train([BATCH] * 3)
            results.append(arrays(model, nnx.LoRAParam))
    for path, leaf in results[0].items():
        np.testing.assert_allclose(results[1][path], leaf, atol=2e-5)
