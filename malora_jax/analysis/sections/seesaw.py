"""Section on the change of each task's score against single-task training."""

import pathlib
from collections.abc import Mapping, Sequence

from malora_jax.analysis import cells, task_plots
from malora_jax.analysis.page import Block, Italic, Picture, Section, Table, Text
from malora_jax.runs import SeedGroup
from malora_jax.runs.compare import single_task_rows
from malora_jax.statistics import Difference

_TITLE = 'The seesaw: training together against training alone'
_Changes = Mapping[str, Difference]


def seesaw_section(groups: Sequence[SeedGroup], output: pathlib.Path) -> Section:
    """Return the section on gains and losses from training tasks together.

    Args:
        groups: Rows of the report.
        output: Directory of the plot.
    """
    alone = {group.name: single_task_rows(groups, group) for group in groups}
    changes = {g.name: _changes_of(g, alone[g.name]) for g in groups if alone[g.name]}
    if not changes:
        text = (
            'Nothing to compare: give, as further --workdir, finished runs that were trained on '
            'one of the tasks alone, with the same method or LoRA, and scored on the same '
            'held-out questions (tasks that are generated have other questions with another seed).'
        )
        return Section('seesaw', _TITLE, [Text(text)], {})
    compared = [group for group in groups if group.name in changes]
    path = output / 'seesaw.png'
    task_plots.plot_seesaw(path, {group.label: changes[group.name] for group in compared})
    clear = [clear for by_task in changes.values() for clear in _clear(by_task)]
    caption = (
        'Change of each score against the run trained on that task alone, with its 95% interval; '
        'right of the line at 0 the task gains from the others, left of it it loses. '
        f'{sum(clear)} gain and {len(clear) - sum(clear)} lose more than the choice of questions '
        'explains.'
    )
    numbers = {
        name: {
            task: {'against': alone[name][task].name, **cells.plain(change)}
            for task, change in by_task.items()
        }
        for name, by_task in changes.items()
    }
    blocks: list[Block] = [Picture(path, caption), _table(compared, alone, changes)]
    return Section('seesaw', _TITLE, blocks, numbers)


def _changes_of(group: SeedGroup, alone: Mapping[str, SeedGroup]) -> _Changes:
    """Return the change of each task against the row of single-task runs with that task."""
    by_row = {other: group.changes_from(other) for other in {*alone.values()}}
    return {task: by_row[other][task] for task, other in alone.items()}


def _table(
    groups: Sequence[SeedGroup],
    alone: Mapping[str, Mapping[str, SeedGroup]],
    changes: Mapping[str, _Changes],
) -> Table:
    rows: list[dict[str, str]] = []
    for group in groups:
        by_task, clear = changes[group.name], _clear(changes[group.name])
        against = [*dict.fromkeys(alone[group.name].values())]
        names = ', '.join(other.label for other in against)
        found = {task: cells.score_difference(by_task.get(task)) for task in group.tasks}
        count = f'{sum(clear)} : {len(clear) - sum(clear)}'
        rows.append({'': group.label, 'against': names, **found, 'gain : lose': count})
        ours, theirs = group.paper, against[0].paper
        if len(against) == 1 and ours and theirs and ours.scores and theirs.scores:
            paper = {t: Italic(f'{ours.scores[t] - theirs.scores[t]:+.1f}') for t in group.tasks}
            rows.append({'': Italic('in the paper'), 'against': Italic(theirs.label), **paper})
    caption = 'Points of the score; intervals by a paired bootstrap over the held-out questions'
    return Table.of(caption, rows)


def _clear(changes: _Changes) -> list[bool]:
    """Return, for each distinguishable change, whether it is a gain."""
    return [change.mean > 0 for change in changes.values() if change.distinguishable]
