"""Section on the seesaw: each task's score after joint training minus that of single-task training.

A row is a group of runs that differ only in their seed.
"""

import pathlib
from collections.abc import Mapping, Sequence

from malora_jax.analysis import cells, task_plots
from malora_jax.analysis.conditions import held_out_questions, model_and_seeds
from malora_jax.analysis.page import Italic, Picture, ReportBlock, Section, Table, Text
from malora_jax.runs import SeedGroup
from malora_jax.runs.compare import single_task_rows
from malora_jax.statistics import PairedDifference

_TITLE = 'The seesaw: training together against training alone'
_Changes = Mapping[str, PairedDifference]


def seesaw_section(groups: Sequence[SeedGroup], output: pathlib.Path) -> Section:
    """Return the section on which tasks gain and which lose when they are trained together.

    Args:
        groups: Rows of the report.
        output: Directory of the plot.
    """
    single_rows = {group.name: single_task_rows(groups, group) for group in groups}
    changes = {g.name: task_changes(g, single_rows[g.name]) for g in groups if single_rows[g.name]}
    if not changes:
        text = (
            'Nothing to compare: add, with more --workdir flags, finished runs that were trained '
            'on one of the tasks alone, with the same method or LoRA, and scored on the same '
            'held-out questions (the questions of generated tasks depend on the seed).'
        )
        return Section('seesaw', _TITLE, [Text(text)], {})
    compared = [group for group in groups if group.name in changes]
    path = output / 'seesaw.png'
    runs = [run for group in compared for run in group.runs]
    task_plots.plot_seesaw(
        path,
        {group.label: changes[group.name] for group in compared},
        f'{model_and_seeds(runs)}, {held_out_questions(runs)}, 95% intervals over questions',
    )
    is_gain = [gain for by_task in changes.values() for gain in _significant_gains(by_task)]
    caption = (
        'Score of each task minus that of training on the task alone, with its 95% interval. Right '
        'of the line at 0, the task gains from the other tasks; left of it, the task loses. '
        f'Significant gains: {sum(is_gain)}; significant losses: {len(is_gain) - sum(is_gain)}.'
    )
    numbers = {
        name: {
            task: {'against': single_rows[name][task].name, **cells.to_json_value(change)}
            for task, change in by_task.items()
        }
        for name, by_task in changes.items()
    }
    blocks: list[ReportBlock] = [Picture(path, caption), _table(compared, single_rows, changes)]
    return Section('seesaw', _TITLE, blocks, numbers)


def task_changes(group: SeedGroup, single_rows: Mapping[str, SeedGroup]) -> _Changes:
    """Return each task's score after joint training minus its score after single-task training.

    Args:
        group: Row of runs that were trained on all tasks.
        single_rows: For each task, the row of runs that were trained on this task alone.
    """
    by_row = {other: group.task_differences(other) for other in {*single_rows.values()}}
    return {task: by_row[other][task] for task, other in single_rows.items()}


def _table(
    groups: Sequence[SeedGroup],
    single_rows: Mapping[str, Mapping[str, SeedGroup]],
    changes: Mapping[str, _Changes],
) -> Table:
    rows: list[dict[str, str]] = []
    for group in groups:
        by_task, is_gain = changes[group.name], _significant_gains(changes[group.name])
        baselines = [*dict.fromkeys(single_rows[group.name].values())]
        names = ', '.join(other.label for other in baselines)
        cells_by_task = {task: cells.score_difference(by_task.get(task)) for task in group.tasks}
        count = f'{sum(is_gain)} : {len(is_gain) - sum(is_gain)}'
        rows.append({'': group.label, 'against': names, **cells_by_task, 'gain : lose': count})
        ours, theirs = group.paper, baselines[0].paper
        if len(baselines) == 1 and ours and theirs and ours.scores and theirs.scores:
            paper = {t: Italic(f'{ours.scores[t] - theirs.scores[t]:+.1f}') for t in group.tasks}
            rows.append({'': Italic('in the paper'), 'against': Italic(theirs.label), **paper})
    caption = (
        'Differences of scores in percentage points, with intervals by a paired bootstrap over the '
        'held-out questions'
    )
    return Table.of(caption, rows)


def _significant_gains(changes: _Changes) -> list[bool]:
    """Return one bool for each significant change of a task's score: True if the score rises."""
    return [change.mean > 0 for change in changes.values() if change.is_significant]
