"""The models of runs, from their directories alone; no data are read."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from malora_jax import data
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.loading.weights import Base, load_base
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import create_state
from malora_jax.training.workdir import read_config


class Restored(NamedTuple):
    """A trained model.

    Attributes:
        base: frozen model and tokenizer.
        model: the decoder with the adapter.
        variables: its collections.
        template: around questions and answers, the one that was trained with.
        method: name of the method.
        weights: where the base's weights are, as configs say it.
        step: optimizer steps that were made.
    """

    base: Base
    model: Decoder
    variables: Any
    template: data.Template
    method: str
    weights: str
    step: int


class Saved(NamedTuple):
    """A trained model in a directory, without its base.

    Attributes:
        path: the directory.
        model: the base's shape.
        weights: where its weights are, as configs say it.
        restore: makes the model, given the base.
    """

    path: pathlib.Path
    model: ModelConfig
    weights: str
    restore: Callable[[Base], Restored]


def load_run(workdir: pathlib.Path) -> Restored:
    """Loads the best checkpoint of a run, or the newest if none was measured.

    Raises:
        UserError: the directory holds no run or no checkpoint, or the base cannot be loaded.
    """
    saved = saved_run(workdir)
    return saved.restore(load_base(saved.model, saved.weights))


def saved_run(workdir: pathlib.Path) -> Saved:
    """What a run's directory holds.

    Raises:
        UserError: it holds no run.
    """
    run = run_config(read_config(workdir))
    return Saved(workdir, run.model, run.weights, functools.partial(_restore, workdir, run))


def _restore(workdir: pathlib.Path, run: RunConfig, base: Base) -> Restored:
    model = Decoder(run.model, run.adapter)
    # For its shapes, which do not depend on the number of steps.
    fresh = create_state(model, make_optimizer(run.optimizer, 1), run.seed, base.params)
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
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
