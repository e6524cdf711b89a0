"""Adapter weights of a run as arrays, trained and initial, without the base model."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import tqdm

from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.structures import SharedDown, Structure
from malora_jax.buckets import home
from malora_jax.export.merge import linear_factors
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.runs import LoadedRun
from malora_jax.training.checkpoint import Checkpoints, newest_checkpoint
from malora_jax.training.config import RunConfig
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import abstract_state, starting_adapter

# Variable collections of an adapter: 'adapter' and 'adapter_frozen'.
Adapter = dict[str, Any]


def read_adapter(workdir: pathlib.Path, run: RunConfig, step: int) -> Adapter:
    """Return the adapter's variable collections from a checkpoint.

    Args:
        workdir: Directory of the run.
        run: Config of the run.
        step: Step of the checkpoint.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    model = Decoder(run.model, run.adapter)
    params = nn.unbox(abstract_variables(Decoder(run.model)))['params']
    # Only shapes matter here, and they do not depend on the number of steps. Everything is restored
    # onto one device, whatever the sharding of the run was.
    shapes = abstract_state(model, make_optimizer(run.optimizer, 1), params)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    fresh = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )
    with Checkpoints(home(workdir / 'checkpoints')) as checkpoints:
        state = checkpoints.restore_state(fresh, step)
    return {'adapter': state.adapter, 'adapter_frozen': state.adapter_frozen}


def start_adapter(workdir: pathlib.Path, run: RunConfig) -> Adapter | None:
    """Return the adapter's collections before the first step, or None if they are not known.

    They are not known if the run started from another adapter, or for a shared subspace in runs
    that are older than the identity stored in checkpoints: the signs of its singular vectors
    depended on the device.

    Args:
        workdir: Directory of the run.
        run: Config of the run.
    """
    if run.training.start_from:
        return None
    newest = newest_checkpoint(home(workdir / 'checkpoints'))
    has_subspace = isinstance(run.adapter.structure, SharedDown)
    if has_subspace and (newest is None or newest.identity is None):
        return None
    return starting_adapter(Decoder(run.model, run.adapter), run.seed)


def projections_of(structure: Structure, adapter: Adapter, linear: str) -> dict[str, np.ndarray]:
    """Return the two projections of each expert of one linear module in all layers, float64.

    Args:
        structure: Structure of the adapter.
        adapter: Variable collections of the adapter.
        linear: Name of the linear module.

    Returns:
        'A', (L, E, D, R), with L layers, E experts (1 if they share it), D inputs and rank R; and
        'B', (L, E, F, R), with F outputs.
    """
    down_LEDR, up_LERF = structure.projections(linear_factors(adapter, linear))
    return {'A': down_LEDR, 'B': up_LERF.swapaxes(-1, -2)}


def linears(run: RunConfig) -> list[str]:
    """Return the names of the adapted linear modules, in the order of a layer."""
    return [linear for linear in LINEARS if linear in run.adapter.targets]


class Weights(NamedTuple):
    """Adapter weights of a run.

    Attributes:
        run: The run.
        trained: Variable collections of the trained adapter.
        start: Variable collections of the initial adapter; None if they are not known.
    """

    run: LoadedRun
    trained: Adapter
    start: Adapter | None


def read_weights(runs: Sequence[LoadedRun]) -> list[Weights]:
    """Read the trained and the initial adapter of each run, from its best or newest checkpoint."""
    bar = tqdm.tqdm(runs, desc='weights', unit='run', dynamic_ncols=True)
    return [
        Weights(
            each,
            read_adapter(each.path, each.settings, each.step),
            start_adapter(each.path, each.settings),
        )
        for each in bar
    ]


def projections(
    weights: Weights, linear: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Return the trained and the initial projections of one linear module.

    Args:
        weights: Adapter weights of a run.
        linear: Name of the linear module.

    Returns:
        The results of `projections_of`; None for the initial ones if they are not known.
    """
    structure = weights.run.settings.adapter.structure
    start = None if weights.start is None else projections_of(structure, weights.start, linear)
    return projections_of(structure, weights.trained, linear), start
