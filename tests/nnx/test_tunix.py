"""Adapters on models of tunix: numbers, trainer, checkpoints, sharding (make test-nnx)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from malora_jax.adapters import AdapterConfig, LowRankExperts
from malora_jax.adapters.trees import count
from malora_jax.models import Decoder, preset
from malora_jax.nnx import FrozenAdapter, adapt, balance_loss, routing_statistics, training_loss
from malora_jax.nnx.layers import adapter_layers
from tests.helpers.models import logits_of, random_variables, small_method
from tests.helpers.paths import ROOT
from tests.nnx.helpers import arrays

peft_trainer = pytest.importorskip('tunix.sft.peft_trainer')
llama = pytest.importorskip('tunix.models.llama3.model')
gemma = pytest.importorskip('tunix.models.gemma.model')
gemma3 = pytest.importorskip('tunix.models.gemma3.model')
qwen2 = pytest.importorskip('tunix.models.qwen2.model')
qwen3 = pytest.importorskip('tunix.models.qwen3.model')

pytestmark = [pytest.mark.nnx, pytest.mark.usefixtures('compile_quickly', 'allow_promotion')]

# Sizes of the preset 'tiny'.
WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD_WIDTH, VOCABULARY = 64, 96, 4, 2, 16, 300
SIZES = dict(
    num_layers=1, embed_dim=WIDTH, hidden_dim=HIDDEN, num_heads=HEADS, num_kv_heads=KV_HEADS,
    head_dim=HEAD_WIDTH,
)  # fmt: skip
ROPE = dict(vocab_size=VOCABULARY, rope_theta=1_000_000, norm_eps=1e-4)
GEMMA = dict(
    final_logit_softcap=None, use_post_attn_norm=False, use_post_ffw_norm=False,
    attention_types=(gemma.AttentionType.GLOBAL,),
)  # fmt: skip
MODELS = {
    'llama': lambda: llama.Llama3(llama.ModelConfig(**SIZES, **ROPE), rngs=nnx.Rngs(0)),
    'gemma': lambda: gemma.Gemma(
        gemma.ModelConfig(num_embed=VOCABULARY, **SIZES, **GEMMA), rngs=nnx.Rngs(0)
    ),
    'gemma3': lambda: gemma3.Gemma3(
        gemma3.ModelConfig(
            num_embed=VOCABULARY, param_dtype=jnp.float32, sliding_window_size=8, **SIZES
        ),
        rngs=nnx.Rngs(0),
    ),
    'qwen2': lambda: qwen2.Qwen2(qwen2.ModelConfig(**SIZES, **ROPE), rngs=nnx.Rngs(0)),
    'qwen3': lambda: qwen3.Qwen3(qwen3.ModelConfig(**SIZES, **ROPE), rngs=nnx.Rngs(0)),
}
TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
MALORA = small_method('malora', targets=TARGETS)


@pytest.fixture(scope='module')
def allow_promotion():
    """Let tunix's models broadcast arrays of different ranks."""
    jax.config.update('jax_numpy_rank_promotion', 'allow')
    yield
    jax.config.update('jax_numpy_rank_promotion', 'raise')


def adapted(name: str, config: AdapterConfig = MALORA) -> nnx.Module:
    """Return a model with random weights, whose adapter is new: its update is zero."""
    model = MODELS[name]()
    rng = np.random.default_rng(5)

    def draw(leaf):
        factor = 1.5 * WIDTH**-0.5 if leaf.ndim > 1 else 0.2
        return factor * jnp.asarray(rng.standard_normal(leaf.shape, np.float32)) + (leaf.ndim == 1)

    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    adapt(model, config, rngs=nnx.Rngs(1))
    return model


def randomize(model: nnx.Module) -> None:
    rng = np.random.default_rng(2)
    trained = nnx.state(model, nnx.LoRAParam)
    nnx.update(
        model,
        jax.tree.map(
            lambda leaf: 0.3 * jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), trained
        ),
    )


def model_inputs(tokens) -> dict[str, jax.Array]:
    B, T = tokens.shape
    causal = jnp.tril(jnp.ones((T, T), bool))
    return {
        'input_tokens': jnp.asarray(tokens),
        'input_mask': jnp.ones((B, T)),
        'positions': jnp.broadcast_to(jnp.arange(T), (B, T)),
        'attention_mask': jnp.broadcast_to(causal, (B, T, T)),
    }


@nnx.jit
def logits(model: nnx.Module, tokens: jax.Array) -> jax.Array:
    given = model_inputs(tokens)
    return model(tokens, given['positions'], None, given['attention_mask'])[0]


def batches(number: int, rows: int = 4) -> list[peft_trainer.TrainingInput]:
    """Return batches in which each token follows from the one before."""
    rng = np.random.default_rng(7)
    starts = rng.integers(3, 40, (number, rows, 1))
    tokens = (starts + np.arange(12)) % 40 + 3
    return [peft_trainer.TrainingInput(each, np.ones(each.shape)) for each in tokens]


def trainer_of(model: nnx.Module, directory=None, steps: int = 20) -> peft_trainer.PeftTrainer:
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=100,
        max_steps=steps,
        checkpoint_root_directory=None if directory is None else str(directory),
    )
    trainer = peft_trainer.PeftTrainer(model, optax.adam(1e-2), config)
    trainer.with_gen_model_input_fn(lambda batch: model_inputs(batch.input_tokens))
    trainer.loss_fn = training_loss(trainer.loss_fn)
    return trainer


@nnx.jit
def layer_updates(layer: nnx.Module, x: jax.Array) -> jax.Array:
    return layer(x)


@pytest.mark.parametrize('name', MODELS)
def test_each_layer_adds_the_update_of_low_rank_experts(name):
    model = adapted(name)
    randomize(model)
    trained = arrays(model, nnx.LoRAParam)
    sizes = {}
    for path, layer in adapter_layers(model):
        *_, part, linear = path.split('/')
        module = getattr(getattr(model.layers[0], part), linear)
        base = type(module).__mro__[1]
        D, F = sizes[linear] = layer.linear.num_inputs, layer.linear.num_outputs
        x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 3, D), np.float32))
        given = x.reshape(2, 3, HEADS, -1) if linear in ('o_proj', 'attn_vec_einsum') else x
        added = module(given) - base.__call__(module, given)
        leaves = {each: trained[f'{path}/adapter/{each}'] for each in MALORA.leaf_names}
        expected = LowRankExperts(MALORA, F).apply({'adapter': leaves}, x.reshape(6, D))
        if linear == 'kv_einsum':
            expected = np.moveaxis(expected.reshape(2, 3, 2, KV_HEADS, HEAD_WIDTH), 2, 0)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(added, expected.reshape(added.shape), atol=1e-5)
    E, R, S = MALORA.num_experts, MALORA.structure.rank, MALORA.structure.subspace_rank
    formula = sum(D * E + D * S + E * S * R + E * R * F for D, F in sizes.values())
    assert count(nnx.state(model, nnx.LoRAParam)) == formula
    assert len(sizes) == (6 if name.startswith('gemma') else 7)


@pytest.mark.parametrize('name', ['llama', 'qwen3'])
def test_the_model_computes_what_the_decoder_here_computes(name):
    # tunix 0.1.7 rotates the heads of its Llama with this base, whatever its config says.
    sizes = dict(num_layers=1, tied=False, rope_theta=1_000_000.0)
    config = preset('tiny', **sizes, qk_norm=name == 'qwen3')
    decoder = Decoder(config, MALORA)
    variables = random_variables(decoder)
    model = adapted(name)
    ours, theirs = variables['params'], model.layers[0]
    block = jax.tree.map(lambda leaf: leaf[0], ours['layers'])
    adapter = jax.tree.map(lambda leaf: leaf[0], variables['adapter']['layers'])
    model.embedder.input_embedding.set_value(ours['embedding'])
    model.lm_head.w.set_value(ours['head'].T)
    model.final_norm.w.set_value(ours['final_norm']['scale'])
    theirs.input_layernorm.w.set_value(block['attention_norm']['scale'])
    theirs.post_attention_layernorm.w.set_value(block['mlp_norm']['scale'])
    if name == 'qwen3':
        theirs.attn.q_norm.w.set_value(block['attention']['q_norm']['scale'])
        theirs.attn.k_norm.w.set_value(block['attention']['k_norm']['scale'])
    for linear in TARGETS:
        part = 'attention' if linear in 'qkvo' else 'mlp'
        layer = getattr(theirs.attn if linear in 'qkvo' else theirs.mlp, f'{linear}_proj')
        kernel = layer.w if linear in 'qkvo' else layer.kernel
        kernel.set_value(block[part][linear]['kernel'].reshape(kernel.shape))
        for leaf, value in adapter[part][linear].items():
            getattr(layer.adapter, leaf).set_value(value)
    tokens = np.random.default_rng(4).integers(3, VOCABULARY, (2, 9))
    expected = logits_of(decoder, variables, tokens)
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(logits(model, jnp.asarray(tokens)), expected, atol=1e-4)


@pytest.mark.parametrize('name', ['llama', 'gemma', 'qwen3'])
def test_the_trainer_trains_only_the_adapter_and_resumes(name, tmp_path):
    model = adapted(name)
    before, batch = arrays(model), model_inputs(batches(1)[0].input_tokens)
    trainer = trainer_of(model, tmp_path)
    loss = nnx.jit(trainer.eval_loss_fn)
    start = float(loss(model, **batch))
    trainer.train(batches(20), batches(1))
    trainer.close()
    assert float(loss(model, **batch)) < start - 1
    after = arrays(model)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {*arrays(model, nnx.LoRAParam)}
    assert 0.5 < float(balance_loss(model)) < 4
    tokens = {float(sums.load.sum()) for sums in routing_statistics(model).values()}
    assert tokens == {4 * 12 * MALORA.router.top_k}
    restored = adapted(name)
    resumed = trainer_of(restored, tmp_path)
    assert resumed.train_steps == 20
    resumed.close()
    assert all(np.array_equal(each, after[path]) for path, each in arrays(restored).items())
    given = jnp.asarray(batches(1)[0].input_tokens)
    np.testing.assert_array_equal(logits(model, given), logits(restored, given))


def test_the_example_of_the_guide_runs():
    text = (ROOT / 'docs' / 'guides' / 'nnx.md').read_text('utf-8')
    names: dict[str, Any] = {}
    exec(text.partition('```python\n')[2].partition('```')[0], names)
    history = names['trainer'].metrics_logger.get_metric_history('', 'loss', 'train')
    # The frozen head is small, so that its logits are.
    assert len(history) == 20 and history[-1] < history[0] - 0.3


def test_frozen_leaves_return_from_the_same_seed_or_with_orbax(tmp_path):
    config, kinds = small_method('moasylora', targets=('q',)), (nnx.LoRAParam, FrozenAdapter)
    one, two = (adapted('llama', config) for _ in range(2))
    (path,) = arrays(one, FrozenAdapter)
    assert path == 'layers/0/attn/q_proj/adapter/down'
    assert np.array_equal(arrays(one, FrozenAdapter)[path], arrays(two, FrozenAdapter)[path])
    randomize(one)
    one.layers[0].attn.q_proj.adapter.down[...] += 1
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'adapter', nnx.state(one, nnx.Any(*kinds)))
        checkpointer.wait_until_finished()
        saved = checkpointer.restore(tmp_path / 'adapter', nnx.state(two, nnx.Any(*kinds)))
    nnx.update(two, saved)
    for kind in kinds:
        before, after = arrays(one, kind), arrays(two, kind)
        assert all(np.array_equal(before[each], after[each]) for each in before)


def test_evaluation_has_no_dropout():
    model = adapted('llama', small_method('malora', targets=('q', 'up'), dropout=0.5))
    randomize(model)
    trainer, (batch,) = trainer_of(model), batches(1)
    _, eval_step = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    tokens = jnp.asarray(batch.input_tokens)
    losses = [float(nnx.jit(trainer.loss_fn)(model, **model_inputs(tokens))) for _ in range(2)]
    evaluated = [float(eval_step(batch)[0]) for _ in range(2)]
    assert losses[0] != losses[1] and evaluated[0] == evaluated[1] != losses[0]


def test_a_sharded_run_equals_a_run_on_one_device():
    if len(jax.devices()) < 4:
        pytest.skip('needs four devices: XLA_FLAGS=--xla_force_host_platform_device_count=4')
    results = {}
    for shape in ((1, 1), (2, 2)):
        model = adapted('llama', small_method('malora', targets=TARGETS, dropout=0.0))
        devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        mesh = jax.sharding.Mesh(devices, ('fsdp', 'tp'))
        state = nnx.state(model)
        places = nnx.get_named_sharding(state, mesh)
        nnx.update(model, jax.tree.map(jax.device_put, state, places))
        up = model.layers[0].mlp.up_proj.adapter
        assert up.shared_down[...].sharding.spec[0] == up.router[...].sharding.spec[0] == 'fsdp'
        assert up.up[...].sharding.spec[2] == 'tp'
        with mesh:
            trainer_of(model, steps=3).train(batches(3))
        results[shape] = arrays(model, nnx.LoRAParam), float(balance_loss(model))
    one, several = results.values()
    for path, leaf in one[0].items():
        np.testing.assert_allclose(several[0][path], leaf, atol=2e-5)
    assert one[1] == pytest.approx(several[1], rel=1e-5)
