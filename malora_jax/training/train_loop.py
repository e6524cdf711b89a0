"""The training loop of a single run."""

from collections.abc import Mapping

import tqdm

from malora_jax.distributed import hosts, sharding
from malora_jax.training import step
from malora_jax.training.preemption import Preempted, PreemptionWatcher
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.state import TrainState


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
    with progress.goodput.phase('compile'):
        # Compile ahead of time, so that the time of the first step does not include compilation.
        train_step = step.lower_train_step(
            setup.run, setup.steps, len(tasks), state, params, hyperparameters
        ).compile()
    unreported = None
    bar = tqdm.tqdm(
        total=setup.steps,
        initial=progress.step,
        desc='train',
        unit='step',
        dynamic_ncols=True,
        disable=not hosts.is_first_process(),
    )
    with preemption.defer_sigterm(), bar:
        progress.start_clock()
        while not progress.is_at_end:
            batch = sharding.shard_batch(progress.next_batch())
            progress.start_step()
            state, metrics = train_step(state, params, batch, hyperparameters)
            if unreported is not None:
                _update_bar(progress.report(*unreported), tasks, bar)
            unreported = (progress.step, metrics)
            stops = preemption.should_stop(progress.step)
            if stops or progress.is_eval_or_save_due:
                _update_bar(progress.report(*unreported, state), tasks, bar)
                unreported = None
                progress.save(state, stops)
                if stops:
                    hosts.print_on_first(
                        f'Stopped by SIGTERM after step {progress.step}, which is saved.'
                    )
                    raise Preempted
                if progress.is_stopped_early:
                    bar.write(
                        'Early stopping: the validation loss no longer falls; stopped after step '
                        f'{progress.step}.'
                    )
                progress.start_clock()
    return state


def _update_bar(record: Mapping[str, float], tasks: list[str], bar: tqdm.tqdm) -> None:
    by_task = [f'{task} {record[f"loss/{task}"]:.2f}' for task in tasks if f'loss/{task}' in record]
    speed = f'{record["tokens_per_second"]:.0f} tokens/s'
    text = ', '.join([f'loss {record["loss"]:.3f}', speed, *by_task])
    bar.n = record['step']
    bar.set_postfix_str(text)  # This also redraws the bar.
