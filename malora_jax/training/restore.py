"""The models of runs, from their directories alone; no data are read."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from malora_jax import data, errors
from malora_jax.models import Decoder
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
    return load_runs([workdir])[0]


def load_runs(workdirs: Sequence[pathlib.Path]) -> list[Restored]:
    """Loads runs that have one base, which is in memory once.

    Raises:
        UserError: as `load_run`, or two runs have different bases.
    """
    runs = [run_config(read_config(workdir)) for workdir in workdirs]
    for workdir, run in zip(workdirs, runs, strict=True):
        if (run.model, run.weights) != (runs[0].model, runs[0].weights):
            raise errors.UserError(
                f'The runs in {workdirs[0]} and {workdir} have different bases '
                f'({_base_name(runs[0])} and {_base_name(run)}).'
            )
    base = load_base(runs[0].model, runs[0].weights)
    return [_restored(*each, base) for each in zip(workdirs, runs, strict=True)]


def _restored(workdir: pathlib.Path, run: RunConfig, base: Base) -> Restored:
    model = Decoder(run.model, run.adapter)
    # For its shapes, which do not depend on the number of steps.
    fresh = create_state(model, make_optimizer(run.optimizer, 1), run.seed, base.params)
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        state = checkpoints.restore_state(fresh, checkpoints.chosen_step)
    template = data.get_template(run.data.template)
    return Restored(base, model, state.variables(base.params), template)


def _base_name(run: RunConfig) -> str:
    return f'{run.model.name} in {run.model.dtype}' + (run.weights and f' from {run.weights}')
