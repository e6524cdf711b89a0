"""Plots of a run, as PNG files. Needs no display."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from malora_jax.analysis.figures import COLOURS, cycle, literally, points, save, smooth
from malora_jax.statistics import Difference


@literally
def plot_curves(
    path: pathlib.Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], label: str
) -> None:
    """A panel for each of several runs: its own curve in colour, the others' in grey behind it.

    Args:
        path: the PNG to write.
        curves: steps and values by name.
        label: what the values are.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.6 + 2 * rows), layout='constrained')
    figure.supxlabel('step', fontsize=10)
    figure.supylabel(label, fontsize=10)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for (name, curve), panel in zip(curves.items(), panels, strict=False):
        for other in curves.values():
            panel.plot(*other, color='0.85', linewidth=1)
        panel.plot(*curve, color=COLOURS[0], linewidth=2)
        panel.set_title(name, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels:  # Those that are left over.
        panel.set_axis_off()
    save(figure, path)


@literally
def plot_task_curves(
    path: pathlib.Path, records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str
) -> None:
    """A panel for each task: the smoothed training losses of several methods, a line for each run.

    Validation losses, where they were measured, are dashed, with a marker for each evaluation.

    Args:
        path: the PNG to write.
        records: of each run's metrics.jsonl, by method.
        title: above the plot.
    """
    everything = [record for runs in records.values() for run in runs for record in run]
    tasks = sorted({key for record in everything for key in record if key.startswith('loss/')})
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4 * columns, 1 + 2.4 * rows), layout='constrained')
    figure.suptitle(title)
    figure.supxlabel('step', fontsize=10)
    figure.supylabel('answer loss (nats per token)', fontsize=10)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for task, panel in zip(tasks, panels, strict=False):
        for colour, (method, runs) in zip(cycle(len(records)), records.items(), strict=True):
            for label, run in zip([method, *['_'] * len(runs)], runs, strict=False):
                steps, losses = points(run, task)
                window = max(9, len(losses) // 20)
                panel.plot(steps, smooth(losses, window), color=colour, label=label)
                panel.plot(*points(run, f'validation_{task}'), '--o', color=colour, markersize=3)
        panel.set_title(task.removeprefix('loss/'), fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    for panel in panels:  # Those that are left over.
        panel.set_axis_off()
    save(figure, path)


@literally
def plot_changes(
    path: pathlib.Path, changes: Mapping[str, Mapping[str, Difference]], title: str
) -> None:
    """Bars of each task's change against training on it alone, with 95% intervals.

    Args:
        path: the PNG to write.
        changes: by method and task.
        title: above the plot.
    """
    tasks = list(dict.fromkeys(task for by_task in changes.values() for task in by_task))
    figure = Figure(figsize=(3.5 + 1.6 * len(tasks), 4), layout='constrained')
    label = 'change against single-task training (points)'
    axes = figure.add_subplot(ylabel=label, title=title)
    width = 0.8 / len(changes)
    for number, (method, by_task) in enumerate(changes.items()):
        shift = (number - (len(changes) - 1) / 2) * width
        means = 100 * np.array([found.mean for found in by_task.values()])
        low, high = 100 * np.array([found.interval for found in by_task.values()]).T
        axes.bar(
            [tasks.index(task) + shift for task in by_task],
            means,
            width,
            # Rounding may put a mean outside of an interval without width.
            yerr=np.maximum((means - low, high - means), 0),
            label=method,
            color=COLOURS[number % len(COLOURS)],
            error_kw={'linewidth': 1, 'alpha': 0.6},
        )
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xticks(np.arange(len(tasks)), tasks, rotation=15)
    axes.grid(axis='y', alpha=0.3)
    figure.legend(frameon=False, loc='outside right upper')
    save(figure, path)
