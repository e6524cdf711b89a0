"""Plots of losses over training, and of score changes by task."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from malora_jax.analysis.figures import (
    COLORS,
    PHONE_DPI,
    SMOOTHING,
    color_cycle,
    metric_curve,
    save,
    small_figure,
    smooth,
    state_conditions,
    without_mathtext,
    wrap_name,
)
from malora_jax.statistics import PairedDifference


@without_mathtext
def plot_curves(
    path: pathlib.Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    label: str,
    conditions: str = '',
) -> None:
    """Plot a panel for each run: its curve in color, with the curves of all other runs in gray.

    Args:
        path: PNG or SVG file to write.
        curves: Steps and values of each curve, by name of the run.
        label: Label of the axis of the values.
        conditions: Conditions of the plot, which are written above it; '' for none.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.9 + 2 * rows), layout='constrained')
    state_conditions(figure, conditions)
    figure.supxlabel('step', fontsize=10)
    figure.supylabel(label, fontsize=10)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for (name, curve), panel in zip(curves.items(), panels, strict=False):
        for other in curves.values():
            panel.plot(*other, color='0.85', linewidth=1)
        panel.plot(*curve, color=COLORS[0], linewidth=2)
        panel.set_title(name, fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    for panel in panels:  # Panels without data.
        panel.set_axis_off()
    for panel in figure.axes[max(0, len(curves) - columns) : len(curves)]:
        panel.tick_params(labelbottom=True)
    save(figure, path)


@without_mathtext
def plot_task_losses(
    path: pathlib.Path,
    records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    conditions: str = '',
) -> None:
    """Plot a panel for each task, with the smoothed training losses of all runs.

    Validation losses, if they were measured, are dashed, with a marker for each evaluation.

    Args:
        path: PNG or SVG file to write.
        records: Records of `metrics.jsonl`, by label in the legend. A label may have several runs,
            such as runs with different seeds. These runs share a color.
        conditions: Conditions of the plot, which are written above it; '' for none.
    """
    everything = [record for runs in records.values() for run in runs for record in run]
    tasks = sorted({key for record in everything for key in record if key.startswith('loss/')})
    rows = -(-len(tasks) // 2)
    figure = small_figure(1.1 + 1.5 * rows + 0.2 * len(records))
    state_conditions(figure, conditions)
    panels = figure.subplots(rows, 2, squeeze=False).flat
    lines = {}
    for task, panel in zip(tasks, panels, strict=False):
        for color, (label, runs) in zip(color_cycle(len(records)), records.items(), strict=True):
            for run in runs:
                steps, losses = metric_curve(run, task)
                if not len(steps):
                    continue
                window = max(SMOOTHING, len(losses) // 20)
                (lines[label],) = panel.plot(steps, smooth(losses, window), color=color)
                panel.plot(
                    *metric_curve(run, f'validation_{task}'), '--o', color=color, markersize=3
                )
        panel.set_title(wrap_name(task.removeprefix('loss/'), 24), fontsize=9)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in panels:  # Panels without data.
        panel.set_axis_off()
    for panel in figure.axes[max(0, len(tasks) - 2) : len(tasks)]:
        panel.set_xlabel('step', fontsize=9)
    figure.supylabel('answer loss (nats per token)', fontsize=9)
    figure.legend(
        lines.values(), lines.keys(), loc='outside lower center', fontsize=8, frameon=False
    )
    save(figure, path, PHONE_DPI)


@without_mathtext
def plot_seesaw(
    path: pathlib.Path,
    changes: Mapping[str, Mapping[str, PairedDifference]],
    conditions: str = '',
) -> None:
    """Plot each task's score minus that of single-task training, with its 95% interval.

    Args:
        path: PNG or SVG file to write.
        changes: Differences of scores, by label in the legend, then by task. Each label has its own
            color.
        conditions: Conditions of the plot, which are written above it; '' for none.
    """
    tasks = list(dict.fromkeys(task for by_task in changes.values() for task in by_task))
    heights = len(tasks) * (0.25 + 0.2 * len(changes)) + 0.2 * len(changes)
    figure = small_figure(1.7 + heights)
    state_conditions(figure, conditions)
    axes = figure.add_subplot(xlabel='change from single-task training (points)')
    height = 0.7 / len(changes)
    for number, (run, by_task) in enumerate(changes.items()):
        shift = (number - (len(changes) - 1) / 2) * height
        means = 100 * np.array([change.mean for change in by_task.values()])
        lows, highs = 100 * np.array([change.interval for change in by_task.values()]).T
        places = [tasks.index(task) + shift for task in by_task]
        # Clipped at 0, because rounding may put a mean outside an interval of zero width.
        errors = np.maximum((means - lows, highs - means), 0)
        axes.errorbar(means, places, xerr=errors, fmt='o', capsize=3, label=run)
    axes.axvline(0, color='black', linewidth=0.8)
    reach = max(5.0, *(abs(end) for end in axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.set_yticks(range(len(tasks)), [wrap_name(task, 16) for task in tasks], fontsize=8)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.grid(axis='x', alpha=0.3)
    figure.legend(loc='outside lower center', fontsize=8, frameon=False)
    save(figure, path, PHONE_DPI)
