"""Loading of a trained model from the directory of a run or of an exported adapter.

The training data is not needed: it is neither loaded nor checked.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

import flax.linen as nn
import jax

from malora_jax import cloud_storage, data, errors, files
from malora_jax.export.adapter import is_adapter, open_adapter
from malora_jax.export.trained_model import StoredModel, TrainedAdapter, TrainedModel
from malora_jax.files import RESTORE_REMEDY
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.models.loading.base_model import LoadedBase
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.identity import RunIdentity, flatten_config
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import TrainState, abstract_state
from malora_jax.training.workdir import check_base, check_run, read_base, read_workdir_config


class _Config(TypedDict):
    model: dict[str, Any]


def saved_model(directory: pathlib.Path, weights: str | None = None) -> StoredModel:
    """Return the trained model in the directory of a run or of an exported adapter.

    From a run it takes the checkpoint with the lowest validation loss, or the newest checkpoint if
    no validation loss was measured. Weights are loaded only by `StoredModel.load`.

    Args:
        directory: Directory of a run or of an exported adapter.
        weights: Location of the base model's weights; None for the location used in training.

    Raises:
        UserError: The directory holds neither a run nor an adapter, the run has no checkpoint, or
            a file is broken or was edited.
    """
    if is_adapter(directory):
        return open_adapter(directory, weights)
    config, run = _read(directory, weights)
    with _open_checkpoints(directory) as checkpoints:
        checkpoints.check_exists()  # Before the base model is loaded, which may take minutes.
    return StoredModel(
        directory,
        run.model,
        run.weights,
        functools.partial(_restore, directory, config, run),
        functools.partial(_load_adapter, directory, config, run),
    )


def read_run_config(workdir: pathlib.Path, weights: str | None = None) -> RunConfig:
    """Return the validated config of a run.

    Args:
        workdir: Directory of the run.
        weights: Location of the base model's weights; None for the location used in training.

    Raises:
        UserError: The directory holds no run, or a file of the run was edited.
    """
    return _read(workdir, weights)[1]


def _read(workdir: pathlib.Path, weights: str | None) -> tuple[dict[str, Any], RunConfig]:
    """Return the config of a run, both as nested fields and as a validated `RunConfig`."""
    config = read_workdir_config(workdir)
    if weights is not None:
        files.check_content(_Config, config, str(workdir / 'config.json'), RESTORE_REMEDY)
        config['model']['weights'] = weights
    with errors.prefix_errors(workdir / 'config.json'):
        run = run_config(config)
    check_run(workdir, config, None)
    return config, run


def _open_checkpoints(workdir: pathlib.Path, identity: RunIdentity | None = None) -> Checkpoints:
    return Checkpoints(cloud_storage.remote_path(workdir / 'checkpoints'), identity=identity)


def _restore(
    workdir: pathlib.Path, config: Mapping[str, Any], run: RunConfig, base: LoadedBase
) -> TrainedModel:
    fingerprint = check_base(workdir, run, base.params)
    # The kernel of another device is no option here, but XLA is one everywhere.
    attention = 'xla' if run.attention == 'xla' else 'auto'
    model = Decoder(run.model, run.adapter, attention=attention)
    state = _best_state(workdir, config, run, fingerprint)
    return TrainedModel(
        base,
        model,
        state.variables(base.params),
        data.get_template(run.data.template),
        run.method,
        run.weights,
        int(state.step),
    )


def _load_adapter(
    workdir: pathlib.Path, config: Mapping[str, Any], run: RunConfig
) -> TrainedAdapter:
    record = read_base(workdir)
    if record is None:
        raise errors.UserError(
            f'{workdir} has no base.json, which identifies the base model: export the run with '
            '--format=adapter first, and then that export.'
        )
    fingerprint = record['fingerprint']
    state = _best_state(workdir, config, run, fingerprint)
    variables = {'adapter': state.adapter, 'adapter_frozen': state.adapter_frozen}
    model = Decoder(run.model, run.adapter)
    return TrainedAdapter(model, variables, run.method, run.weights, int(state.step), fingerprint)


def _best_state(
    workdir: pathlib.Path, config: Mapping[str, Any], run: RunConfig, fingerprint: str
) -> TrainState:
    """Return the state of the checkpoint with the lowest validation loss, or of the newest one."""
    identity = RunIdentity(flatten_config(config), None, fingerprint)
    model = Decoder(run.model, run.adapter)
    params = nn.unbox(abstract_variables(model))['params']
    # The shapes of a state do not depend on the number of steps.
    shapes = abstract_state(model, make_optimizer(run.optimizer, 1), params)
    # Without a mesh, shapes have no sharding; the stored one may name devices of another machine.
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: leaf.update(sharding=leaf.sharding or alone),
        shapes,
    )
    with _open_checkpoints(workdir, identity) as checkpoints:
        return checkpoints.restore_state(shapes, checkpoints.best_or_latest_step)
