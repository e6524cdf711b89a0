"""Sections with the results of a sweep: means over seeds, with confidence intervals.

Each row of a table is a group of runs that differ only in their seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.analysis import cells
from malora_jax.analysis.page import NO_VALUE, Italic, ReportBlock, Section, Table, Text
from malora_jax.runs import SeedGroup

_READING_GUIDE = (
    'Scores are in %, losses in nats per token of the right answers. Each is the mean over tasks, '
    "then over seeds. Brackets show the 95% confidence interval over seeds, by Student's t; a "
    'single seed has none. With two seeds the interval is wide, because two values say little '
    'about the variance.'
)


def averages_section(
    groups: Sequence[SeedGroup], values: Mapping[str, Mapping[str, Any]]
) -> Section:
    """Return the section on averages over tasks.

    Args:
        groups: Groups of runs that differ only in their seed, at least one. Each is a table row.
        values: For the name of each group, a dict from the config fields that the sweep varies to
            the group's values of these fields.
    """
    fields = [*dict.fromkeys(field for group in groups for field in values[group.name])]
    rows = [
        {
            '': group.name,
            **{field: f'{values[group.name].get(field, NO_VALUE)}' for field in fields},
            'trained parameters': f'{group.parameters["trainable"]:,}',
            'seeds': ', '.join(map(str, group.by_seed('score'))),
            'score': cells.score(
                (group.mean_over_seeds('score'), group.interval_over_seeds('score'))
            ),
            'loss': cells.loss(group.mean_over_seeds('loss'), group.interval_over_seeds('loss')),
            **({Italic('in the paper'): Italic(f'{group.paper.average:g}')} if group.paper else {}),
        }
        for group in groups
    ]
    best = min(groups, key=lambda group: group.mean_over_seeds('loss'))
    numbers = {
        group.name: {
            **{'values': values[group.name], 'trainable': group.parameters['trainable']},
            **{m: _numbers(group, m) for m in ('score', 'loss')},
        }
        for group in groups
    }
    blocks: list[ReportBlock] = [
        Table.of('Averages over tasks', rows),
        Text(f'The lowest loss is that of {best.name}.'),
        Text(_READING_GUIDE),
    ]
    return Section('averages', 'Averages', blocks, numbers)


def by_task_section(groups: Sequence[SeedGroup]) -> Section:
    """Return the section on the scores of each task, as means over seeds.

    Args:
        groups: Groups of runs that differ only in their seed. Each is a row of the table.
    """
    numbers = {
        group.name: {task: _numbers(group, 'score', task) for task in group.tasks}
        for group in groups
    }
    rows = [
        {'': name} | {t: cells.score((own['mean'], own['interval'])) for t, own in by_task.items()}
        for name, by_task in numbers.items()
    ]
    return Section('by_task', 'By task', [Table.of('Scores in %', rows)], numbers)


def _numbers(group: SeedGroup, metric: str, task: str = '') -> dict[str, Any]:
    return {
        'mean': group.mean_over_seeds(metric, task),
        'interval': group.interval_over_seeds(metric, task),
        'by_seed': group.by_seed(metric, task),
    }
