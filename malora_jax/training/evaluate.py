"""Scoring a trained adapter, or the base alone, without training."""

import pathlib
from collections.abc import Mapping
from typing import Any

from malora_jax.evaluation import runner
from malora_jax.models import Decoder
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import run_config
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.setup import Setup, build
from malora_jax.training.state import create_state
from malora_jax.training.workdir import check_config


def evaluate(config: Mapping[str, Any], workdir: pathlib.Path | None) -> dict[str, Any]:
    """Exact match on the held-out questions of every task.

    Args:
        config: as written in configs/.
        workdir: of the run whose newest checkpoint is scored; None for the base model alone.

    Returns:
        `step` of the checkpoint (None for the base), `tasks` by name and `average`.

    Raises:
        UserError: the directory holds no run with this config, or no checkpoint.
    """
    run = run_config(config)
    if workdir:
        check_config(workdir, config)
    setup = build(run)
    step, model, variables = None, Decoder(run.model), {'params': setup.base.params}
    if workdir:
        step, variables = _restore(setup, workdir)
        model = setup.model
    answers = runner.answer_held_out(
        setup.generator(model),
        variables,
        setup.splits,
        setup.base.tokenizer,
        setup.template,
        'score',
    )
    scores = runner.share_exact(answers)
    return {
        'step': step,
        'tasks': {
            split.task_name: {
                'metric': 'exact_match',
                'score': scores[split.task_name],
                'examples': len(split.held_out),
            }
            for split in setup.splits
        },
        'average': runner.average(scores),
    }


def _restore(setup: Setup, workdir: pathlib.Path) -> tuple[int, Any]:
    run = setup.run
    state = create_state(setup.model, make_optimizer(run.optimizer, run.training.steps), run.seed)
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        state = checkpoints.restore_state(state)
    return int(state.step), state.variables(setup.base.params)
