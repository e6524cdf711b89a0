"""Section on tasks: losses over training, and scores before and after training."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.analysis import task_plots
from malora_jax.analysis.conditions import model_and_seeds
from malora_jax.analysis.figures import metric_curve
from malora_jax.analysis.page import NO_VALUE, Fold, Picture, ReportBlock, Section, Table, Text
from malora_jax.runs import LoadedRun, SeedGroup

# With more runs than this, their tables are collapsed.
_MAX_TABLES = 4
# With more rows than this, only the curves of the preferred rows are plotted, or else those of the
# first rows. A row is a group of runs that differ only in their seed.
_MAX_CURVES = 4
_PREFERRED_ROWS = ('lora', 'malora', 'lora_single', 'malora_single')


def tasks_section(
    runs: Sequence[LoadedRun], groups: Sequence[SeedGroup], output: pathlib.Path
) -> Section:
    """Return the section on the losses and scores of each task.

    Args:
        runs: Runs of the report. Each run has its own table.
        groups: The finished runs again, grouped into rows. Each row has its own color in the plot.
        output: Directory of the plot.
    """
    numbers = {
        run.name: {task: _task_numbers(run, task) for task in _tasks_with_losses(run)}
        for run in runs
    }
    if not any(numbers.values()):
        text = 'The metrics of these runs have no losses by task.'
        return Section('tasks', 'Tasks', [Text(text)], numbers)
    path = output / 'tasks.png'
    rows = _with_curves([group for group in groups if not group.is_base])
    records = {group.label: [run.records for run in group.runs] for group in rows}
    records |= {run.name: [run.records] for run in runs if not run.is_finished}
    task_plots.plot_task_losses(path, records, model_and_seeds(runs))
    caption = (
        'Answer loss of each task over the steps: moving average of the training loss (dashed: the '
        'validation loss, if it was measured). Lower is better: the lower of two curves in one '
        f'panel learned that task better. {_falls(numbers)}'
    )
    tables = [_table(run, numbers[run.name]) for run in runs]
    folded = len(tables) > _MAX_TABLES
    blocks: list[ReportBlock] = (
        [Fold('Losses and scores of each run', tables)] if folded else [*tables]
    )
    return Section('tasks', 'Tasks', [Picture(path, caption), *blocks], numbers)


def _falls(numbers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a sentence about the tasks whose training loss falls most and least."""
    losses = {
        (run, task): (one['first_loss'], one['last_loss'])
        for run, by_task in numbers.items()
        for task, one in by_task.items()
    }
    by_fall = sorted(losses, key=lambda each: losses[each][1] - losses[each][0])
    most, least = (
        f'{task} of {run} ({losses[run, task][0]:.2f} to {losses[run, task][1]:.2f})'
        for run, task in (by_fall[0], by_fall[-1])
    )
    return f'The training loss falls most for {most}, and least for {least}.'


def _with_curves(groups: Sequence[SeedGroup]) -> Sequence[SeedGroup]:
    if len(groups) <= _MAX_CURVES:
        return groups
    preferred = [group for group in groups if group.name in _PREFERRED_ROWS]
    return preferred or groups[:_MAX_CURVES]


def _tasks_with_losses(run: LoadedRun) -> list[str]:
    keys = {key for record in run.records for key in record}
    return [task for task in run.tasks if f'loss/{task}' in keys]


def _task_numbers(run: LoadedRun, task: str) -> dict[str, Any]:
    """Return the losses, the number of examples and the scores of a task.

    `first_loss` and `last_loss` are means over the first and the last tenth of the steps that had
    examples of the task.
    """
    losses = metric_curve(run.records, f'loss/{task}')[1]
    tenth = max(1, len(losses) // 10)
    scored = run.results['tasks'].get(task) if run.is_finished else None
    return {
        'first_loss': float(losses[:tenth].mean()),
        'last_loss': float(losses[-tenth:].mean()),
        'examples': run.records[-1].get(f'examples/{task}'),
        'before': scored['before'] if scored else None,
        'after': scored['after'] if scored else None,
        'interval': scored.get('after_interval') if scored else None,
    }


def _table(run: LoadedRun, numbers: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        {
            'task': task,
            'drawn': NO_VALUE if one['examples'] is None else f'{one["examples"]:,}',
            'loss, first': f'{one["first_loss"]:.2f}',
            'last': f'{one["last_loss"]:.2f}',
            **_scores_of(one),
        }
        for task, one in numbers.items()
    ]
    caption = (
        f'{run.name}: examples drawn until step {run.records[-1]["step"]}, training loss in the '
        'first and the last tenth of the steps, and scores in % before and after training with '
        'the 95% interval'
    )
    return Table.of(caption, rows)


def _scores_of(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Return the table cells with a task's scores, in percent; empty if the task is not scored.

    The cells are the score before training, the score after training, and the 95% confidence
    interval of the score after training.

    Args:
        numbers: Numbers of the task, as `_task_numbers` returns them.
    """
    if numbers['after'] is None:
        return {}
    interval = '–'.join(f'{100 * end:.0f}' for end in numbers['interval'] or ())
    return {
        'score before': f'{100 * numbers["before"]:.1f}',
        'after': f'{100 * numbers["after"]:.1f}',
        '95%': interval or NO_VALUE,
    }
