"""Tables of study B of the fair comparison: 1 to 12 tasks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs.sweeps import fair_task_counts
from docs.tables_fair import (
    NO_RUNS,
    difference_cell,
    differences_by_seed,
    groups,
    loss_difference,
    named_numbers,
)
from malora_jax import markdown
from malora_jax.analysis import cells
from malora_jax.analysis.page import NO_VALUE
from malora_jax.runs import SeedGroup
from malora_jax.statistics import PairedDifference

# Mixtures of study B, with their names in tables.
MIXTURES = {'malora': 'MALoRA', 'molora': 'MoLoRA'}


def differences_by_count(method: str) -> dict[int, PairedDifference]:
    """Return the difference of the losses from LoRA's in study B, by number of tasks."""
    changes = {
        count: loss_difference('fair_task_counts', f'{method}-{count}', f'lora-{count}')
        for count in fair_task_counts.COUNTS
    }
    return {count: change for count, change in changes.items() if change}


def task_counts_table() -> str:
    """Return the table of losses and exact matches by number of tasks.

    The row of one task is the mean over all tasks, each of them alone.
    """
    known = groups('fair_task_counts')
    if not known:
        return NO_RUNS
    first = fair_task_counts.TASKS[: min(fair_task_counts.COUNTS)]
    head = ('tasks', 'LoRA, loss', 'MoLoRA − LoRA', 'MALoRA − LoRA', 'MoLoRA − LoRA, first two')
    rows = [(*head, *(f'exact match, %, `{method}`' for method in fair_task_counts.METHODS))]
    for count in (1, *fair_task_counts.COUNTS):
        lora = _complete_row('lora', count)
        if lora is None:
            continue
        all_tasks = tuple(lora.tasks)
        changes = (
            difference_cell('fair_task_counts', f'{method}-{count}', lora.name, tasks)
            for method, tasks in (('molora', all_tasks), ('malora', all_tasks), ('molora', first))
        )
        groups_of_row = (_complete_row(method, count) for method in fair_task_counts.METHODS)
        scores = (
            cells.score(group and (group.mean_over_seeds('score'), None)) for group in groups_of_row
        )
        label = f'1, mean of {len(all_tasks)}' if count == 1 else f'{count}'
        rows.append((label, cells.loss(lora.mean_over_seeds('loss')), *changes, *scores))
    return markdown.table(rows)


def _complete_row(method: str, count: int) -> SeedGroup | None:
    """Return the runs of a method on a number of tasks; None until all tasks are recorded."""
    group = groups('fair_task_counts').get(f'{method}-{count}')
    num_tasks = len(fair_task_counts.TASKS) if count == 1 else count
    return group if group and len(group.tasks) == num_tasks else None


def differences_by_task_table() -> str:
    """Return the table of how much higher the mixtures' loss is than LoRA's, by task and count.

    A number is the mean over both mixtures and over the seeds.
    """
    rows = [['task', *(f'{count}' for count in (1, *fair_task_counts.COUNTS))]]
    for task in fair_task_counts.TASKS:
        rows.append([task, *(_mixtures_minus_lora(int(count), task) for count in rows[0][1:])])
    return markdown.table(rows) if groups('fair_task_counts') else NO_RUNS


def _mixtures_minus_lora(count: int, task: str) -> str:
    """Return a cell of the table of differences by task."""
    means = []
    for method in MIXTURES:
        by_seed = differences_by_seed(
            'fair_task_counts', f'{method}-{count}', f'lora-{count}', (task,)
        )
        if not by_seed:
            return NO_VALUE
        means.append(np.mean([by_task[task] for by_task in by_seed.values()]))
    return f'{np.mean(means):+.3f}'


def single_tasks_table() -> str:
    """Return the table of what each task gains or loses by being trained with the eleven others."""
    known = groups('fair_task_counts')
    most = max(fair_task_counts.COUNTS)
    rows = [['task', *fair_task_counts.METHODS]]
    tasks_by_label = {task: (task,) for task in fair_task_counts.TASKS}
    for label, tasks in {**tasks_by_label, 'mean': fair_task_counts.TASKS}.items():
        changes = (
            difference_cell('fair_task_counts', f'{method}-{most}', f'{method}-1', tasks)
            for method in fair_task_counts.METHODS
        )
        rows.append([label, *changes])
    return markdown.table(rows) if known else NO_RUNS


PARTS: dict[str, Callable[[], str]] = {
    'fair task counts': task_counts_table,
    'fair differences by task': differences_by_task_table,
    'fair single tasks': single_tasks_table,
}


def values() -> dict[int, dict[str, Any]]:
    """Return the differences of the losses from LoRA's, by number of tasks and mixture."""
    found: dict[int, dict[str, Any]] = {count: {} for count in fair_task_counts.COUNTS}
    for method in MIXTURES:
        for count, change in differences_by_count(method).items():
            found[count][method] = named_numbers(change)
    return found


VALUES: dict[str, Callable[[], Mapping[Any, Any]]] = {'task_counts': values}
