"""The training loop of a single run."""

from collections.abc import Mapping

from malora_jax.distributed import hosts, sharding
from malora_jax.progress import ProgressBar
from malora_jax.training import step
from malora_jax.training.preemption import Preempted, PreemptionWatcher
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.state import TrainState
from malora_jax.training.validation import VALIDATION_LOSS


def train_steps(
    progress: RunProgress, state: TrainState, preemption: PreemptionWatcher
) -> TrainState:
    """Train from the current step of the run to its last step, or until early stopping.

    Args:
        progress: Progress of the run, before its last step.
        state: State from which training continues; its buffers are donated.
        preemption: Watcher that reports whether the run should stop.

    Returns:
        The state after the last step, which is also saved as a checkpoint.

    Raises:
        FloatingPointError: A loss or the gradient is not finite; the message names the step.
        OSError: A checkpoint cannot be written.
        Preempted: SIGTERM stopped the run; the step in progress is finished and saved.
    """
    setup = progress.setup
    params, tasks = setup.base.params, [split.task_name for split in setup.splits]
    hyperparameters = sharding.put_replicated(setup.hyperparameters)
    with hosts.progress_bar('train', setup.steps, 'step', progress.step) as bar:
        with progress.goodput.phase('compile'):
            # Compile ahead of time, so that the time of the first step does not include it.
            train_step = step.lower_train_step(
                setup.run, setup.steps, len(tasks), state, params, hyperparameters
            ).compile()
        bar.update(progress.step)
        losses: dict[str, float | None] = dict.fromkeys(tasks)
        unreported = None
        with preemption.defer_sigterm():
            progress.start_clock()
            while not progress.is_at_end:
                batch = sharding.shard_batch(progress.next_batch())
                progress.start_step()
                state, metrics = train_step(state, params, batch, hyperparameters)
                if unreported is not None:
                    _update_bar(bar, losses, progress.report(*unreported))
                unreported = (progress.step, metrics)
                stops = preemption.should_stop(progress.step)
                if stops or progress.is_eval_or_save_due:
                    _update_bar(bar, losses, progress.report(*unreported, state))
                    unreported = None
                    progress.save(state, stops)
                    if stops:
                        bar.write(f'Stopped by SIGTERM after step {progress.step}, which is saved.')
                        raise Preempted
                    if progress.is_stopped_early:
                        bar.write(
                            'Early stopping: the validation loss no longer falls; stopped after '
                            f'step {progress.step}.'
                        )
                    progress.start_clock()
    return state


def _update_bar(
    bar: ProgressBar, losses: dict[str, float | None], record: Mapping[str, float]
) -> None:
    """Show the record of a step.

    Args:
        bar: Bar to update.
        losses: Newest loss of each task, to which those of the record are added. A task has no loss
            in the record if it has no token in the batch.
        record: Record of the step.
    """
    losses |= {task: record[f'loss/{task}'] for task in losses if f'loss/{task}' in record}
    known = {task: loss for task, loss in losses.items() if loss is not None}
    facts = [f'loss {record["loss"]:.3f}', f'{record["tokens_per_second"]:.0f} tokens/s']
    bar.update(record['step'], facts, known)
    if VALIDATION_LOSS in record:
        bar.write(f'Step {record["step"]}: validation loss {record[VALIDATION_LOSS]:.4f}.')
