"""A run's adapter as arrays, from its checkpoints or as it started; the base is not needed."""

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

# An adapter's collections.
Adapter = dict[str, Any]


def read_adapter(workdir: pathlib.Path, run: RunConfig, step: int) -> Adapter:
    """The adapter's collections of a checkpoint.

    Raises:
        UserError: it cannot be read.
    """
    model = Decoder(run.model, run.adapter)
    params = nn.unbox(abstract_variables(Decoder(run.model)))['params']
    # For its shapes, which do not depend on the number of steps; on one device, wherever they were.
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

    They are not known where they came from another adapter. Nor are those of a shared subspace in
    runs from before checkpoints had identities: the signs of its singular vectors were those that
    the device of the run happened to choose.
    """
    if run.training.start_from:
        return None
    newest = newest_checkpoint(home(workdir / 'checkpoints'))
    has_subspace = isinstance(run.adapter.structure, SharedDown)
    if has_subspace and (newest is None or newest.identity is None):
        return None
    return starting_adapter(Decoder(run.model, run.adapter), run.seed)


def projections_of(structure: Structure, adapter: Adapter, linear: str) -> dict[str, np.ndarray]:
    """Return the two sides of each expert of one linear in all layers, float64.

    Returns:
        'A', (L, E, D, R), with L layers, E experts (1 if they share it), D inputs and rank R; and
        'B', (L, E, F, R), with F outputs.
    """
    down_LEDR, up_LERF = structure.projections(linear_factors(adapter, linear))
    return {'A': down_LEDR, 'B': up_LERF.swapaxes(-1, -2)}


def linears(run: RunConfig) -> list[str]:
    """The adapted linears, in the order of a layer."""
    return [linear for linear in LINEARS if linear in run.adapter.targets]


class Weights(NamedTuple):
    """Adapter of a run, as trained and as it started (None if that is not known)."""

    run: LoadedRun
    trained: Adapter
    start: Adapter | None


def read_weights(runs: Sequence[LoadedRun]) -> list[Weights]:
    """Read the adapters of the checkpoints that stand for the runs."""
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
    """Return the projections of one linear, see `projections_of`, as trained and as started."""
    structure = weights.run.settings.adapter.structure
    start = None if weights.start is None else projections_of(structure, weights.start, linear)
    return projections_of(structure, weights.trained, linear), start
