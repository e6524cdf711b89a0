"""Trained models from the directories of runs and of exported adapters; no data are read."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from malora_jax import buckets, data, errors, files
from malora_jax.export.adapter import is_adapter, saved_adapter
from malora_jax.export.trained import Restored, Saved
from malora_jax.files import RESTORE
from malora_jax.models import Decoder
from malora_jax.models.loading.weights import Base
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.identity import Identity, flattened
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import create_state
from malora_jax.training.workdir import check_base, check_run, read_config


class _Config(TypedDict):
    model: dict[str, Any]


def saved_model(directory: pathlib.Path, weights: str | None = None) -> Saved:
    """What a run or an exported adapter holds: of a run, its best checkpoint by validation loss.

    Args:
        directory: of either.
        weights: where the base's weights are, if not where they were in training.

    Raises:
        UserError: the directory is neither; or as `saved_adapter`.
    """
    if is_adapter(directory):
        return saved_adapter(directory, weights)
    config, run = _read(directory, weights)
    restore = functools.partial(_restore, directory, config, run)
    return Saved(directory, run.model, run.weights, restore)


def config_of(workdir: pathlib.Path, weights: str | None = None) -> RunConfig:
    """The config of a run, with the base's weights elsewhere if that is given.

    Raises:
        UserError: the directory holds no run, or a file of the run was edited.
    """
    return _read(workdir, weights)[1]


def _read(workdir: pathlib.Path, weights: str | None) -> tuple[dict[str, Any], RunConfig]:
    """The config of a run as it is written and as it is checked."""
    config = read_config(workdir)
    if weights is not None:
        files.check_content(_Config, config, str(workdir / 'config.json'), RESTORE)
        config['model']['weights'] = weights
    with errors.within(workdir / 'config.json'):
        run = run_config(config)
    check_run(workdir, config, None)
    return config, run


def _restore(
    workdir: pathlib.Path, config: Mapping[str, Any], run: RunConfig, base: Base
) -> Restored:
    identity = Identity(flattened(config), None, check_base(workdir, run, base.params))
    model = Decoder(run.model, run.adapter)
    # For its shapes, which do not depend on the number of steps.
    fresh = create_state(model, make_optimizer(run.optimizer, 1), run.seed, base.params)
    saved = buckets.home(workdir / 'checkpoints')
    with Checkpoints(saved, identity=identity) as checkpoints:
        state = checkpoints.restore_state(fresh, checkpoints.chosen_step)
    return Restored(
        base,
        model,
        state.variables(base.params),
        data.get_template(run.data.template),
        run.method,
        run.weights,
        int(state.step),
    )
