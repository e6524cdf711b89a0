"""Start of a run from a trained adapter, which this package exported or `peft` saved.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear, R rank of the LoRA, S
rank of the subspace.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.base_structure import PARAMETER_KINDS, StartsFromLoRA
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.adapters.trees import ADAPTER_COLLECTIONS, named_leaves
from malora_jax.errors import UserError
from malora_jax.export.adapter import is_adapter, open_adapter
from malora_jax.export.peft import is_peft, read_peft
from malora_jax.models import Decoder
from malora_jax.models.loading.base_model import LoadedBase
from malora_jax.training.state import TrainState

# Factor of the router's initial weights if a mixture starts from a LoRA. The gates of the chosen
# experts then sum to K / E within a few thousandths, and the choice of experts stays random.
_ROUTER_SCALE = 1e-3


def warm_start(
    directory: pathlib.Path, state: TrainState, model: Decoder, base: LoadedBase
) -> TrainState:
    """Return a state before the first step whose adapter computes the same as a trained adapter.

    The trained adapter must have the same leaves as the run's adapter, or it must be a LoRA. In the
    case of a LoRA, all experts of the run start as this LoRA (see `_experts_from_lora`). If the two
    adapters have different scales α / rank, the up-projection is rescaled to compensate.

    Args:
        directory: Directory of an exported adapter, or of an adapter that `peft` saved.
        state: Freshly initialized state of the run.
        model: Decoder of the run, with its adapter.
        base: Frozen base model.

    Raises:
        UserError: The directory holds no adapter, or its adapter does not fit this run or its base
            model.
    """
    leaves, scale = load_trained(directory, model, base)
    adapter = model.adapter
    assert adapter is not None
    ours = state.leaves()
    check_targets(directory, ours, leaves)
    is_lora_run = isinstance(adapter.structure, IndependentExperts) and not adapter.has_router
    if is_lora(leaves) and not is_lora_run:
        new_leaves = _mixture_from_lora(directory, adapter, ours, leaves, scale)
    else:
        new_leaves = {
            path: _place_leaf(directory, adapter, path, leaf, leaves.pop(path, None), scale)
            for path, leaf in ours.items()
        }
        if leaves:
            raise UserError(
                f'training.start_from: {directory} has {min(leaves)}, which this method lacks; '
                'choose the method that the adapter was trained with.'
            )
    return state.replace_leaves(new_leaves)


def is_lora(leaves: Mapping[str, np.ndarray]) -> bool:
    """Return whether the leaves are those of a plain LoRA: the two projections of one expert.

    Args:
        leaves: Leaves by path.
    """
    return all(
        path.rsplit('/', 1)[-1] in IndependentExperts.factors and leaf.shape[1] == 1
        for path, leaf in leaves.items()
    )


def _mixture_from_lora(
    directory: pathlib.Path,
    adapter: AdapterConfig,
    ours: Mapping[str, jax.Array],
    leaves: Mapping[str, np.ndarray],
    scale: float,
) -> dict[str, jax.Array]:
    """Return the leaves of a mixture of experts that computes the same as a LoRA, by path.

    Args:
        directory: Directory of the LoRA, for error messages.
        adapter: Settings of the mixture.
        ours: Freshly initialized leaves of the mixture, by path.
        leaves: Leaves of the LoRA, by path.
        scale: Scale of the LoRA's update, such as α / rank.

    Raises:
        UserError: The mixture cannot start from a LoRA, or its rank is too low.
    """
    if not isinstance(adapter.structure, StartsFromLoRA):
        raise UserError(
            f'training.start_from: {directory} holds a LoRA, from which this method cannot start; '
            "choose 'lora', 'molora', 'malora', 'hydralora', 'alora', 'comol', 'moslora', "
            "'d2mora' or a method of one of their structures."
        )
    down, _ = IndependentExperts.factors
    rank = max(leaf.shape[-1] for path, leaf in leaves.items() if path.endswith(f'/{down}'))
    check_rank(directory, rank, adapter)
    new_leaves: dict[str, jax.Array] = {}
    for linear in dict.fromkeys(path.rpartition('/')[0] for path in ours):
        fresh = {name: ours[f'{linear}/{name}'] for name in adapter.leaf_names}
        down_LDR, up_LRF = (leaves[f'{linear}/{name}'][:, 0] for name in IndependentExperts.factors)
        # Map over the layers one at a time, because batched decompositions can deadlock on CPU; see
        # `initializers._svd`.
        start = jax.jit(
            lambda *layers: jax.lax.map(lambda layer: _experts_from_lora(adapter, *layer), layers),
            out_shardings={name: leaf.sharding for name, leaf in fresh.items()},
        )
        up_LRF = up_LRF * np.float32(scale / adapter.scale)
        made = start(fresh, down_LDR, up_LRF, adapter.layer_experts(len(up_LRF)))
        new_leaves |= {f'{linear}/{name}': leaf for name, leaf in made.items()}
    return new_leaves


def _experts_from_lora(
    adapter: AdapterConfig,
    fresh: Mapping[str, jax.Array],
    down_DR: jax.Array,
    up_RF: jax.Array,
    num_experts: jax.Array,
) -> dict[str, jax.Array]:
    """Return the leaves of one linear in one layer, whose experts all start as the same LoRA.

    If the gates of the chosen experts have a constant sum, the up-projections are divided by it,
    and the mixture then computes the same as the LoRA. Otherwise, with K for the number of chosen
    experts, the router's weights are made so small that each gate is about 1 / E, and the K gates
    sum to about K / E. The up-projections are multiplied by E / K to compensate.

    The router is random, so the experts receive different tokens and become different in training.
    If an expert has a higher rank than the LoRA, the up-projection has zeros in the other ranks.

    Args:
        adapter: Settings of the mixture.
        fresh: Freshly initialized leaves of the linear.
        down_DR: (D, R), down-projection of the LoRA.
        up_RF: (R, F), up-projection of the LoRA, rescaled for the scale of the mixture.
        num_experts: () int32, number of experts of this layer, E.
    """
    structure = cast(StartsFromLoRA, adapter.structure)
    leaves = dict(fresh) | structure.factors_from_lora(fresh, down_DR, adapter.initialization.beta)
    router = adapter.router
    gate_sum = router.gate_sum(adapter.num_experts) if adapter.has_router else 1
    if gate_sum is None:
        leaves['router'] = _ROUTER_SCALE * fresh['router']
        up_RF = up_RF * (num_experts / router.top_k)
    else:
        up_RF = up_RF / gate_sum
    last = adapter.structure.factors[-1]
    leaves[last] = jnp.zeros_like(fresh[last]).at[..., : up_RF.shape[0], :].set(up_RF)
    return leaves


def load_trained(
    directory: pathlib.Path, model: Decoder, base: LoadedBase
) -> tuple[dict[str, np.ndarray], float]:
    """Load a trained adapter.

    Args:
        directory: Directory of an exported adapter, or of an adapter that `peft` saved.
        model: Decoder of the run, with its adapter.
        base: Frozen base model.

    Returns:
        The leaves by path, and the scale by which the update is multiplied.

    Raises:
        UserError: The directory holds no adapter, or the adapter belongs to another base model or
            to other tasks.
    """
    if is_peft(directory):
        return read_peft(directory, model.config)
    if not is_adapter(directory):
        raise UserError(
            f'training.start_from: {directory} holds neither an exported adapter (manifest.json) '
            "nor one of peft's (adapter_config.json)."
        )
    trained = open_adapter(directory).restore(base)
    ours, theirs = (each.adapter.tasks if each.adapter else () for each in (model, trained.model))
    if theirs not in ((), ours):
        raise UserError(
            f'training.start_from: {directory} has parameters for each of the tasks '
            f'{", ".join(theirs)}, in this order, and this run has others; start from the LoRA of '
            'one task, which experiments.export writes with --task=NAME.'
        )
    leaves = {
        path: np.asarray(leaf)
        for name in ADAPTER_COLLECTIONS
        for path, leaf in named_leaves(trained.variables.get(name, {}))
    }
    return leaves, trained.model.adapter.scale if trained.model.adapter else 1.0


def check_targets(
    directory: pathlib.Path, ours: Mapping[str, Any], leaves: Mapping[str, np.ndarray]
) -> None:
    """Check that a trained adapter adapts the same linear layers as the run's adapter.

    Args:
        directory: Directory of the trained adapter, for the message.
        ours: Leaves of the run's adapter, by path.
        leaves: Leaves of the trained adapter, by path.

    Raises:
        UserError: The linear layers differ.
    """
    targets, theirs = ({path.split('/')[-2] for path in tree} for tree in (ours, leaves))
    if targets != theirs:
        raise UserError(
            f'training.start_from: {directory} adapts {", ".join(sorted(theirs))}; '
            f'adapter.targets must be the same, not {", ".join(sorted(targets))}.'
        )


def check_rank(directory: pathlib.Path, rank: int, adapter: AdapterConfig) -> None:
    """Check that a trained LoRA fits into an expert of the run.

    Args:
        directory: Directory of the LoRA, for the message.
        rank: Rank of the LoRA.
        adapter: Adapter configuration of the run.

    Raises:
        UserError: The experts have a lower rank.
    """
    if rank > adapter.structure.rank:
        raise UserError(
            f'training.start_from: {directory} holds a LoRA of rank {rank}; adapter.rank must be '
            f'at least that, not {adapter.structure.rank}.'
        )


def _place_leaf(
    directory: pathlib.Path,
    adapter: AdapterConfig,
    path: str,
    fresh: Any,
    trained: np.ndarray | None,
    scale: float,
) -> Any:
    """Return trained values as a leaf of the run, on the devices of the fresh leaf.

    Args:
        directory: Directory of the trained adapter, for error messages.
        adapter: Settings of the run's adapter.
        path: Path of the leaf.
        fresh: Freshly initialized leaf of the run.
        trained: Trained values; None if the trained adapter has no such leaf.
        scale: Scale of the trained adapter's update, such as α / rank. If the run's adapter has
            another scale, an up-projection is rescaled to compensate.

    Raises:
        UserError: There are no trained values, or they have another shape.
    """
    if trained is None:
        raise UserError(
            f'training.start_from: {directory} has no {path}, which this method needs; choose the '
            'method that the adapter was trained with.'
        )
    if trained.shape != fresh.shape:
        raise UserError(
            f'training.start_from: {path} has the shape {trained.shape} in {directory}; this run '
            f'needs {fresh.shape}: choose the adapter.rank, shared_rank and num_experts that the '
            'adapter was trained with.'
        )
    # A frozen residual has an up-projection, too.
    kind, up_kind = (
        PARAMETER_KINDS[name][0]
        for name in (path.rsplit('/', 1)[-1], adapter.structure.factors[-1])
    )
    if kind == up_kind:
        trained = trained * np.float32(scale / adapter.scale)
    return jax.device_put(trained, fresh.sharding)
