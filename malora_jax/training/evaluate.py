"""Evaluation of a trained adapter, or of the base model alone, without training."""

import pathlib
from collections.abc import Mapping
from typing import Any

from malora_jax import cloud_storage
from malora_jax.distributed.mesh import use_mesh
from malora_jax.evaluation import scores
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import run_config
from malora_jax.training.identity import RunIdentity, flatten_config
from malora_jax.training.prepare import data_digests
from malora_jax.training.setup import Setup, build_setup
from malora_jax.training.workdir import check_base, check_run


def evaluate(config: Mapping[str, Any], workdir: pathlib.Path | None) -> dict[str, Any]:
    """Score the held-out questions of every task.

    Args:
        config: Nested config, as `get_config` of a module in configs/ returns it.
        workdir: Directory of a run. Its checkpoint with the lowest validation loss is scored, or
            the newest one if no validation loss was measured. None for the base model alone.

    Returns:
        `step` of the checkpoint (None for the base model), `tasks` (scores and mean loss by task),
        `average` (mean score over tasks) and `average_interval` (its 95% confidence interval).

    Raises:
        UserError: The config is not valid, the directory has no run with this config or no
            checkpoint, or the base model is not the one of the run.
    """
    run = run_config(config)
    if workdir:
        check_run(workdir, config, data_digests(run))
    with use_mesh(run.mesh, run.data.batch_size):
        setup = build_setup(run)
        step, variables = _restore(setup, config, workdir) if workdir else (None, None)
        answers = setup.answer_held_out(variables, 'score')
    by_task = scores.group_by_task(answers)
    return {
        'step': step,
        'tasks': {
            split.task_name: {
                'metric': split.task.scoring.metric,
                'score': scores.mean_score(by_task[split.task_name]),
                'interval': scores.interval(by_task[split.task_name]),
                'more': scores.more_scores(by_task[split.task_name]),
                'loss': scores.mean_loss(by_task[split.task_name]),
                'examples': len(split.held_out),
                'scoring': setup.scoring_record(split),
            }
            for split in setup.splits
            if split.held_out
        },
        'average': scores.average({name: scores.mean_score(a) for name, a in by_task.items()}),
        'average_interval': scores.average_interval(by_task),
    }


def _restore(setup: Setup, config: Mapping[str, Any], workdir: pathlib.Path) -> tuple[int, Any]:
    base = check_base(workdir, setup.run, setup.base.params)
    identity = RunIdentity(flatten_config(config), None, base)
    checkpoint_dir = cloud_storage.remote_path(workdir / 'checkpoints')
    with Checkpoints(checkpoint_dir, identity=identity) as checkpoints:
        state = checkpoints.restore_state(setup.fresh_state(), checkpoints.best_or_latest_step)
    return int(state.step), state.variables(setup.base.params)
