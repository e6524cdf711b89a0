"""Tables of study B of the fair comparison: 1 to 12 tasks."""

from collections.abc import Callable

from configs.sweeps import fair_task_counts
from docs.tables_fair import NO_RUNS, difference_cell, groups, loss_difference
from malora_jax import markdown
from malora_jax.analysis import cells
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
    """Return the table of differences from LoRA by number of tasks."""
    known = groups('fair_task_counts')
    if not known:
        return NO_RUNS
    first = fair_task_counts.TASKS[: min(fair_task_counts.COUNTS)]
    rows = [('tasks', 'LoRA, loss', 'MoLoRA − LoRA', 'MALoRA − LoRA', 'MoLoRA − LoRA, first two')]
    for count in fair_task_counts.COUNTS:
        lora = f'lora-{count}'
        if lora not in known:
            continue
        changes = (
            difference_cell('fair_task_counts', f'{method}-{count}', lora, tasks)
            for method, tasks in (('molora', ()), ('malora', ()), ('molora', first))
        )
        rows.append((f'{count}', cells.loss(known[lora].mean_over_seeds('loss')), *changes))
    return markdown.table(rows)


def single_tasks_table() -> str:
    """Return the table of what each task gains or loses by being trained with the eleven others."""
    known = groups('fair_task_counts')
    most = max(fair_task_counts.COUNTS)
    rows = [['task', *fair_task_counts.METHODS]]
    for task in fair_task_counts.TASKS:
        changes = (
            difference_cell('fair_task_counts', f'{method}-{most}', f'{method}-{task}', (task,))
            for method in fair_task_counts.METHODS
        )
        rows.append([task, *changes])
    return markdown.table(rows) if known else NO_RUNS


PARTS: dict[str, Callable[[], str]] = {
    'fair task counts': task_counts_table,
    'fair single tasks': single_tasks_table,
}
