"""Adapter weights of a run as arrays, trained and initial, without the base model."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from malora_jax.adapters.base_structure import Structure
from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.goat import GOAT
from malora_jax.adapters.structures import SharedDown
from malora_jax.cloud_storage import remote_path
from malora_jax.export.merge import linear_leaves_float64
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.progress import track
from malora_jax.runs import LoadedRun
from malora_jax.training.checkpoint import Checkpoints, latest_checkpoint
from malora_jax.training.config import RunConfig
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import abstract_state, initial_variables

# Variable collections of an adapter: 'adapter' and 'adapter_frozen'.
AdapterVariables = dict[str, Any]


def read_adapter(workdir: pathlib.Path, config: RunConfig, step: int) -> AdapterVariables:
    """Return the adapter's variable collections from a checkpoint.

    Args:
        workdir: Directory of the run.
        config: Config of the run.
        step: Step of the checkpoint.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    model = Decoder(config.model, config.adapter)
    params = nn.unbox(abstract_variables(Decoder(config.model)))['params']
    # Only shapes matter here. They do not depend on the number of steps, so it is set to 1. All
    # arrays are restored onto one device, whatever the sharding of the run was.
    shapes = abstract_state(model, make_optimizer(config.optimizer, 1), params)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    fresh = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    with Checkpoints(remote_path(workdir / 'checkpoints')) as checkpoints:
        state = checkpoints.restore_state(fresh, step)
    return {'adapter': state.adapter, 'adapter_frozen': state.adapter_frozen}


def initial_adapter(workdir: pathlib.Path, config: RunConfig) -> AdapterVariables | None:
    """Return the adapter's variable collections before the first step; None if they are unknown.

    The adapter is initialized again from the seed of the run. This is impossible in three cases.
    The run may have started from a trained adapter. The experts may have started from the frozen
    kernels, which are not loaded here. Or the run is old, and its method has a shared
    subspace. That subspace starts from singular vectors, and in old runs their signs depended on
    the device. Old runs are recognized by checkpoints that do not store a `RunIdentity`.

    Args:
        workdir: Directory of the run.
        config: Config of the run.
    """
    if config.training.start_from or isinstance(config.adapter.structure, GOAT):
        return None
    newest = latest_checkpoint(remote_path(workdir / 'checkpoints'))
    has_subspace = isinstance(config.adapter.structure, SharedDown)
    if has_subspace and (newest is None or newest.identity is None):
        return None
    return initial_variables(Decoder(config.model, config.adapter), config.seed)


def expert_projections(
    structure: Structure, adapter: AdapterVariables, linear: str
) -> dict[str, np.ndarray]:
    """Return the down- and up-projection of each expert of one linear module, in all layers.

    Args:
        structure: Structure of the adapter.
        adapter: Variable collections of the adapter.
        linear: Name of the linear module.

    Returns:
        Two float64 arrays by key: 'A', the down-projections, (L, E, D, R); and 'B', the
        up-projections, (L, E, F, R). There are L layers, E experts, D inputs, F outputs and rank R.
        If all experts share a projection, E is 1 in that array.
    """
    down_LEDR, up_LERF = structure.projections(linear_leaves_float64(adapter, linear))
    return {'A': down_LEDR, 'B': up_LERF.swapaxes(-1, -2)}


def adapted_linears(config: RunConfig) -> list[str]:
    """Return the names of the adapted linear modules, in their order within a layer."""
    return [linear for linear in LINEARS if linear in config.adapter.targets]


class AdapterWeights(NamedTuple):
    """Adapter weights of a run.

    Attributes:
        run: The run.
        trained: Variable collections of the trained adapter.
        initial: Variable collections of the initial adapter; None if they are unknown.
    """

    run: LoadedRun
    trained: AdapterVariables
    initial: AdapterVariables | None


def read_adapter_weights(runs: Sequence[LoadedRun]) -> list[AdapterWeights]:
    """Return the trained and the initial adapter weights of each run.

    The trained weights are those of the checkpoint at `LoadedRun.report_step`: the best checkpoint,
    or the newest one if no validation loss was measured.

    Args:
        runs: Runs with checkpoints.
    """
    return [
        AdapterWeights(
            each,
            read_adapter(each.path, each.run_config, each.report_step),
            initial_adapter(each.path, each.run_config),
        )
        for each in track(runs, 'weights', 'run')
    ]


def run_projections(
    weights: AdapterWeights, linear: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Return the trained and the initial projections of one linear module.

    Args:
        weights: Adapter weights of a run.
        linear: Name of the linear module.

    Returns:
        The trained and the initial projections, each as `expert_projections` returns them. The
        initial ones are None if they are unknown.
    """
    structure = weights.run.run_config.adapter.structure
    start = (
        None if weights.initial is None else expert_projections(structure, weights.initial, linear)
    )
    return expert_projections(structure, weights.trained, linear), start
