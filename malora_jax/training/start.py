"""A run that starts from what was trained before: an exported adapter, or one of `peft`'s.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear, R rank.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.trees import COLLECTIONS, named_leaves
from malora_jax.errors import UserError
from malora_jax.export.adapter import is_adapter, saved_adapter
from malora_jax.export.peft import is_peft, read_peft
from malora_jax.models import Decoder
from malora_jax.models.loading.weights import Base
from malora_jax.training.state import TrainState


def started_from(
    directory: pathlib.Path, state: TrainState, model: Decoder, base: Base
) -> TrainState:
    """A fresh state with the values of a trained adapter in it.

    The adapter must have the run's leaves, or be a LoRA of the experts' rank, which becomes the
    first of experts that have projections of their own; router and other experts then stay as
    they are. Another α / rank is made up for in the last factor.

    Args:
        directory: of an exported adapter, or of one that `peft` saved.
        state: before the first step.
        model: the run's decoder, with its adapter.
        base: the frozen model.

    Raises:
        UserError: there is no adapter, or it does not fit this run or its base.
    """
    leaves, scale = _trained(directory, model, base)
    adapter = model.adapter
    assert adapter is not None
    fresh = {name: dict(named_leaves(getattr(state, name))) for name in COLLECTIONS}
    ours = {path: leaf for tree in fresh.values() for path, leaf in tree.items()}
    _check_targets(directory, ours, leaves)
    found = {
        path: _placed(directory, adapter, path, leaf, leaves.pop(path, None), scale)
        for path, leaf in ours.items()
    }
    if leaves:
        raise UserError(
            f'training.start_from: {directory} has {min(leaves)}, which this method has not; '
            'choose the method that it was trained with.'
        )
    return state.replace(
        **{
            name: unflatten_dict({path: found[path] for path in tree}, sep='/')
            for name, tree in fresh.items()
        }
    )


def _trained(
    directory: pathlib.Path, model: Decoder, base: Base
) -> tuple[dict[str, np.ndarray], float]:
    """Leaves by path, and what the update is multiplied by."""
    if is_peft(directory):
        return read_peft(directory, model.config)
    if not is_adapter(directory):
        raise UserError(
            f'training.start_from: {directory} holds neither an exported adapter (manifest.json) '
            "nor one of peft's (adapter_config.json)."
        )
    trained = saved_adapter(directory).restore(base)
    leaves = {
        path: np.asarray(leaf)
        for name in COLLECTIONS
        for path, leaf in named_leaves(trained.variables.get(name, {}))
    }
    return leaves, trained.model.adapter.scale if trained.model.adapter else 1.0


def _check_targets(
    directory: pathlib.Path, ours: dict[str, Any], leaves: dict[str, np.ndarray]
) -> None:
    targets, theirs = ({path.split('/')[-2] for path in tree} for tree in (ours, leaves))
    if targets != theirs:
        raise UserError(
            f'training.start_from: {directory} adapts {", ".join(sorted(theirs))}; '
            f'adapter.targets must be the same, not {", ".join(sorted(targets))}.'
        )


def _placed(
    directory: pathlib.Path,
    adapter: AdapterConfig,
    path: str,
    fresh: Any,
    trained: np.ndarray | None,
    scale: float,
) -> Any:
    """A leaf of the run, with the trained values in it."""
    if trained is None:
        if path.endswith('/router') and adapter.factors == ('down', 'up'):
            return fresh
        raise UserError(
            f'training.start_from: {directory} has no {path}, which this method needs; choose the '
            'method that it was trained with, or one whose experts have projections of their own.'
        )
    if path.rsplit('/', 1)[-1] == adapter.factors[-1]:
        trained = trained * np.float32(scale / adapter.scale)
    if trained.shape == fresh.shape:
        return jax.device_put(trained, fresh.sharding)
    # One expert (L, 1, …), among the E of the run.
    if trained.shape != (fresh.shape[0], 1, *fresh.shape[2:]):
        raise UserError(
            f'training.start_from: {path} has the shape {trained.shape} in {directory}; this run '
            f'needs {fresh.shape}: choose the adapter.rank, shared_rank and num_experts that it '
            'was trained with.'
        )
    return jax.device_put(fresh.at[:, :1].set(trained), fresh.sharding)
