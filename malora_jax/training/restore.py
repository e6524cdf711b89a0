"""The model of a run, from its directory alone; no data are read."""

import pathlib
from typing import Any, NamedTuple

from malora_jax import data
from malora_jax.models import Decoder
from malora_jax.models.loading.weights import Base, load_base
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import run_config
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
    """

    base: Base
    model: Decoder
    variables: Any
    template: data.Template


def load_run(workdir: pathlib.Path) -> Restored:
    """Loads the best checkpoint of a run, or the newest if none was measured.

    Raises:
        UserError: the directory holds no run or no checkpoint, or the base cannot be loaded.
    """
    run = run_config(read_config(workdir))
    base = load_base(run.model, run.weights)
    model = Decoder(run.model, run.adapter)
    # For its shapes, which do not depend on the number of steps.
    fresh = create_state(model, make_optimizer(run.optimizer, 1), run.seed, base.params)
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        state = checkpoints.restore_state(fresh, checkpoints.chosen_step)
    template = data.get_template(run.data.template)
    return Restored(base, model, state.variables(base.params), template)
