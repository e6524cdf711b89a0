"""Small models with random nonzero weights, and packed batches made by hand."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters import METHODS, AdapterConfig, method
from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder, preset
from malora_jax.models.decoder import abstract_variables, output_head

METHOD_NAMES = tuple(METHODS)
# Sizes of the preset 'tiny', as in the config.json of a Hugging Face directory.
TINY_SIZES = {
    'hidden_size': 64,
    'intermediate_size': 96,
    'max_position_embeddings': 2048,
    'num_attention_heads': 4,
    'num_hidden_layers': 2,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-4,
    'rope_theta': 5000.0,
    'vocab_size': 300,
}


def _representatives(kind: Callable[[AdapterConfig], Hashable]) -> tuple[str, ...]:
    """Return one method of each kind: the first of those with the most leaves."""
    chosen: dict[Hashable, str] = {}
    for name in METHODS:
        key, leaves = kind(method(name)), len(method(name).structure.factors)
        if key not in chosen or leaves > len(method(chosen[key]).structure.factors):
            chosen[key] = name
    return tuple(chosen.values())


def _structure(adapter: AdapterConfig) -> Hashable:
    """Return what determines the computation: the method's own dispatch, or structure and router.

    Sizes, initial values, kinds of gates and the choice of frozen leaves are ignored.
    """
    router = (adapter.router.input, adapter.router.scores) if adapter.has_router else None
    return adapter.dispatch or (type(adapter.structure), router)


def _layout(adapter: AdapterConfig) -> Hashable:
    """Return what determines the computation and which leaves are trained or frozen."""
    return type(adapter.structure), _structure(adapter), adapter.frozen


# Representative methods for tests in which compiling every method takes too long, and in which
# sizes and initial values do not matter. STRUCTURES covers each computation; LAYOUTS also covers
# each split into trained and frozen leaves.
STRUCTURES = _representatives(_structure)
LAYOUTS = _representatives(_layout)
_SIZES: dict[str, dict[str, Any]] = {
    'lora': dict(rank=8),
    'dora': dict(rank=8),
    'asylora': dict(rank=8),
    'molora': dict(num_experts=4, rank=3),
    'moasylora': dict(num_experts=4, rank=6),
    'malora': dict(num_experts=4, rank=4, shared_rank=9),
    'malora_small': dict(num_experts=4, rank=3, shared_rank=6),
    'molora_r12': dict(num_experts=4, rank=4),
    'molora_same_down': dict(num_experts=4, rank=4),
    'malora_fixed_shared': dict(num_experts=4, rank=5, shared_rank=9),
    'malora_symmetric': dict(num_experts=4, rank=3, shared_rank=12),
    'malora_unshared': dict(num_experts=4, rank=4, shared_rank=8),
    'malora_fixed_core': dict(num_experts=4, rank=4, shared_rank=9),
    'malora_shared_up': dict(num_experts=4, rank=4, shared_rank=9),
    'hydralora': dict(num_experts=4, top_k=4, rank=5, shared_rank=5),
    'hydralora_top2': dict(num_experts=4, rank=5, shared_rank=5),
    'alora': dict(num_experts=4, top_k=4, rank=5, shared_rank=5),
    'adamole': dict(num_experts=4, top_k=4, rank=3),
    # The gates sum to K.
    'smora': dict(num_experts=6, shared_rank=6, top_k=2, alpha=1.0),
    'flylora': dict(num_experts=8, shared_rank=8, top_k=3, alpha=0.4),
    'align_lora': dict(rank=8),
    'remix': dict(num_experts=4, rank=3),
    'mtl_lora': dict(
        num_experts=4,
        top_k=4,
        rank=5,
        shared_rank=5,
        tasks=('one', 'two'),
        task_temperature=0.5,
    ),
    'moslora': dict(rank=8, shared_rank=8),
    'comol': dict(num_experts=4, top_k=4, rank=5, shared_rank=5),
    'd2mora': dict(num_experts=4, top_k=4, rank=3, num_up_experts=8),
    # With 64 inputs, the factor of the update is about 1, because its gates sum to one.
    'goat': dict(num_experts=4, rank=3, alpha=0.7),
    'mlora_heads': dict(num_experts=4, top_k=4, rank=5, shared_rank=5),
    'molora_dispatch': dict(num_experts=4, rank=3),
    'malora_dispatch': dict(num_experts=4, rank=4, shared_rank=9),
}


def small_method(name: str, **overrides: Any) -> AdapterConfig:
    """Return the config of the method in a size that suits the tiny model.

    If the dropout rate is zero, heads have no dropout masks, either.
    """
    no_masks = {'head_dropout': 0.0} if overrides.get('dropout') == 0 else {}
    return method(name, **(_SIZES[name] | no_masks | overrides))


def tiny_model(adapter: AdapterConfig | None = None, **overrides: Any) -> Decoder:
    return Decoder(preset('tiny', **overrides), adapter)


def random_variables(model: Decoder, seed: int = 0) -> dict[str, Any]:
    """Return all variable collections with random nonzero values, the up-projections included.

    The base model's values do not depend on the adapter.
    """
    shapes = nn.unbox(abstract_variables(model))
    return {name: _random_tree(tree, (seed, name == 'params')) for name, tree in shapes.items()}


def _random_tree(shapes: Any, seed: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape, np.float32)
        if name == 'scale':
            return 1 + 0.2 * normal
        if name == 'magnitude':  # A kernel's columns have a norm of about 1.5.
            return 1.5 + 0.3 * normal
        return normal * (1.5 * shape[-2] ** -0.5 if name == 'kernel' else 0.2)

    leaves = [
        jnp.asarray(draw(path.rsplit('/', 1)[-1], leaf.shape), leaf.dtype)
        for path, leaf in named_leaves(shapes)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Return prompts of the given lengths with random tokens, none of them special."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 300, length).tolist() for length in lengths]


def packed_batch(
    rows: Sequence[Sequence[int]], length: int, *, num_tasks: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return a packed batch of random examples; example i belongs to task i mod `num_tasks`.

    The last half of each example carries loss; padding is zero, as in the data pipeline.

    Args:
        rows: Lengths of the examples in each row.
        length: Sequence length T of the rows.
        num_tasks: Number of tasks.
        seed: Random seed of the tokens.

    Returns:
        Arrays (B, T): `loss_mask` is float32, the others are int32.
    """
    rng = np.random.default_rng(seed)
    keys = ('inputs', 'targets', 'task_ids', 'segment_ids', 'positions')
    batch = {key: np.zeros((len(rows), length), np.int32) for key in keys}
    batch['loss_mask'] = np.zeros((len(rows), length), np.float32)
    number = 0
    for row, sizes in enumerate(rows):
        start = 0
        for segment, size in enumerate(sizes, 1):
            here = (row, slice(start, start + size))
            tokens = rng.integers(3, 300, size + 1)
            batch['inputs'][here], batch['targets'][here] = tokens[:-1], tokens[1:]
            batch['task_ids'][here] = number % num_tasks
            batch['segment_ids'][here] = segment
            batch['positions'][here] = np.arange(size)
            batch['loss_mask'][here] = np.arange(size) >= size // 2
            start, number = start + size, number + 1
    return batch


def unpack_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a packed batch's examples with one per row, in order of row and segment."""
    examples = [
        (row, segment)
        for row, segments in enumerate(batch['segment_ids'])
        for segment in range(1, segments.max() + 1)
    ]
    alone = {}
    for key, array in batch.items():
        alone[key] = np.zeros((len(examples), array.shape[1]), array.dtype)
        for number, (row, segment) in enumerate(examples):
            values = array[row][batch['segment_ids'][row] == segment]
            alone[key][number, : len(values)] = 1 if key == 'segment_ids' else values
    return alone


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(
    model: Decoder, variables: Any, tokens, positions, segments, tasks=0
) -> jax.Array:
    groups_NG = groups_of(model, jnp.broadcast_to(tasks, tokens.shape))
    return model.apply(variables, tokens, positions, segments, groups_NG)[0]


def groups_of(model: Decoder, tasks_BT) -> jax.Array | None:
    """Return the one-hot task of each token; None if the adapter has no parameters for tasks."""
    if model.adapter is None or not model.adapter.tasks:
        return None
    return jax.nn.one_hot(tasks_BT.reshape(-1), len(model.adapter.tasks))


def logits_of(
    model: Decoder, variables: Any, tokens, positions=None, segments=None, tasks=0
) -> np.ndarray:
    """Return the logits (B, T, V); by default each row is one example of the first task."""
    tokens = jnp.asarray(tokens)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    if segments is None:
        segments = jnp.ones_like(tokens)
    hidden_BTD = hidden_states(model, variables, tokens, positions, segments, tasks)
    return np.asarray(hidden_BTD @ output_head(model.config, variables['params']).T)
