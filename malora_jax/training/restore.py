"""Loading of a trained model from the directory of a run or of an exported adapter.

The training data is not needed: it is neither loaded nor checked.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from malora_jax import cloud_storage, data, errors, files
from malora_jax.export.adapter import is_adapter, open_adapter
from malora_jax.export.trained_model import StoredModel, TrainedModel
from malora_jax.files import RESTORE_REMEDY
from malora_jax.models import Decoder
from malora_jax.models.loading.base_model import LoadedBase
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.identity import RunIdentity, flatten_config
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import create_state
from malora_jax.training.workdir import check_base, check_run, read_workdir_config


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
    restore = functools.partial(_restore, directory, config, run)
    return StoredModel(directory, run.model, run.weights, restore)


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
    identity = RunIdentity(flatten_config(config), None, check_base(workdir, run, base.params))
    # The kernel of another device is no option here, but XLA is one everywhere.
    attention = 'xla' if run.attention == 'xla' else 'auto'
    model = Decoder(run.model, run.adapter, attention=attention)
    # Only the shapes of this state are used, and they do not depend on the number of steps.
    fresh = create_state(model, make_optimizer(run.optimizer, 1), run.seed, base.params)
    with _open_checkpoints(workdir, identity) as checkpoints:
        state = checkpoints.restore_state(fresh, checkpoints.best_or_latest_step)
    return TrainedModel(
        base,
        model,
        state.variables(base.params),
        data.get_template(run.data.template),
        run.method,
        run.weights,
        int(state.step),
    )
