"""Plots of tasks for a narrow page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.analysis.figures import (
    PHONE_DPI,
    cycle,
    literally,
    points,
    save,
    small_figure,
    smooth,
    wrapped,
)


@literally
def plot_tasks(path: pathlib.Path, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A panel for each task: the smoothed training loss of each run.

    Validation losses, where they were measured, are dashed, with a marker for each evaluation.

    Args:
        path: the PNG to write.
        records: of metrics.jsonl, by run.
    """
    keys = {key for run in records.values() for record in run for key in record}
    tasks = sorted(key for key in keys if key.startswith('loss/'))
    rows = -(-len(tasks) // 2)
    figure = small_figure(0.8 + 1.5 * rows + 0.2 * len(records))
    panels = figure.subplots(rows, 2, squeeze=False).flat
    lines = {}
    for task, panel in zip(tasks, panels, strict=False):
        for colour, (name, run) in zip(cycle(len(records)), records.items(), strict=True):
            steps, losses = points(run, task)
            if len(steps):
                window = max(9, len(losses) // 20)
                (lines[name],) = panel.plot(steps, smooth(losses, window), color=colour)
                panel.plot(*points(run, f'validation_{task}'), '--o', color=colour, markersize=3)
        panel.set_title(wrapped(task.removeprefix('loss/'), 24), fontsize=9)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in panels:  # Those that are left over.
        panel.set_axis_off()
    for panel in figure.axes[max(0, len(tasks) - 2) : len(tasks)]:
        panel.set_xlabel('step', fontsize=9)
    figure.supylabel('answer loss (nats per token)', fontsize=9)
    figure.legend(
        lines.values(), lines.keys(), loc='outside lower center', fontsize=8, frameon=False
    )
    save(figure, path, PHONE_DPI)


@literally
def plot_seesaw(path: pathlib.Path, changes: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Each task's change against training it alone, with its interval, a colour for each run.

    Args:
        path: the PNG to write.
        changes: by run and task: points, and the ends of the interval.
    """
    tasks = list(dict.fromkeys(task for by_task in changes.values() for task in by_task))
    figure = small_figure(1.4 + 0.45 * len(tasks) * max(1, len(changes)) + 0.2 * len(changes))
    axes = figure.add_subplot(xlabel='change against single-task training (points)')
    height = 0.7 / len(changes)
    for number, (run, by_task) in enumerate(changes.items()):
        shift = (number - (len(changes) - 1) / 2) * height
        means, lows, highs = np.array(list(by_task.values())).T
        places = [tasks.index(task) + shift for task in by_task]
        errors = np.maximum((means - lows, highs - means), 0)
        axes.errorbar(means, places, xerr=errors, fmt='o', capsize=3, label=run)
    axes.axvline(0, color='black', linewidth=0.8)
    reach = max(5.0, *(abs(end) for end in axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.set_yticks(range(len(tasks)), [wrapped(task, 16) for task in tasks], fontsize=8)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.grid(axis='x', alpha=0.3)
    figure.legend(loc='outside lower center', fontsize=8, frameon=False)
    save(figure, path, PHONE_DPI)
