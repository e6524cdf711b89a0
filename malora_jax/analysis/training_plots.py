"""Plots of a single run, as PNG or SVG files."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from malora_jax.analysis.figures import (
    COLORS,
    SMOOTHING,
    color_cycle,
    save,
    smooth,
    without_mathtext,
)


@without_mathtext
def plot_losses(path: pathlib.Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Plot the training loss of each task over steps, with a moving average.

    Validation losses, if they were measured, are dashed, with a marker for each evaluation.

    Args:
        path: PNG or SVG file to write.
        records: Records of `metrics.jsonl`.
        title: Title of the plot.
    """
    tasks = sorted({key for record in records for key in record if key.startswith('loss/')})
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.add_subplot(
        xlabel=f'step (line: moving average of {SMOOTHING} steps; dashed: validation loss)',
        ylabel='answer loss (nats per token)',
        title=title,
    )
    for color, task in zip(color_cycle(len(tasks)), tasks, strict=True):
        points = [(record['step'], record[task]) for record in records if task in record]
        steps, losses = np.array(points).T
        axes.plot(steps, losses, color=color, alpha=0.2, linewidth=1)
        axes.plot(steps, smooth(losses), color=color, label=task.removeprefix('loss/'))
        key = f'validation_{task}'
        points = [(r['step'], r[key]) for r in records if key in r]
        if points:
            axes.plot(*np.array(points).T, '--o', color=color, markersize=3)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, ncols=2)
    save(figure, path)


@without_mathtext
def plot_expert_load(
    path: pathlib.Path, loads: Mapping[str, np.ndarray], tasks: Sequence[str], title: str
) -> None:
    """Plot heat maps of the fraction of token slots that each expert gets, by layer.

    There is a row of panels for each adapted linear module and a column for each task. Every linear
    module has its own router and experts, so loads are not averaged over linear modules.

    Args:
        path: PNG or SVG file to write.
        loads: (L, G, E) fractions by layer, task and expert, for each linear module; sum to one
            over E.
        tasks: Names of the G tasks.
        title: Title of the plot.
    """
    experts = next(iter(loads.values())).shape[-1]
    size = (1.5 + 1.5 * len(tasks), 1 + 1.6 * len(loads))
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title)
    panels = figure.subplots(len(loads), len(tasks), sharex=True, sharey=True, squeeze=False)
    for row, (linear, load_LGE) in zip(panels, loads.items(), strict=True):
        row[0].set_ylabel(f'{linear}\nlayer', fontsize=9)
        for panel, load_LE in zip(row, load_LGE.swapaxes(0, 1), strict=True):
            image = panel.imshow(load_LE, aspect='auto', cmap='magma', vmin=0, vmax=2 / experts)
    for panel, task in zip(panels[0], tasks, strict=True):
        panel.set_title(task, fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel('expert', fontsize=9)
        panel.set_xticks(range(experts))
    label = f'share of token slots (balanced: {1 / experts:.3f}; colors saturate at twice that)'
    figure.colorbar(image, ax=panels, label=label, extend='max', shrink=0.6)
    save(figure, path)


@without_mathtext
def plot_scores(path: pathlib.Path, tasks: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Plot bars of each task's score before and after training, and of its majority baseline.

    The majority baseline ("best constant") gives the same answer to all questions. The scores of
    the model have their 95% intervals.

    Args:
        path: PNG or SVG file to write.
        tasks: Value of `tasks` in `results.json`.
        title: Title of the plot.
    """
    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.add_subplot(ylabel='share of right answers', title=title, ylim=(0, 1))
    places = np.arange(len(tasks))
    series = (('before', 'before'), ('best_constant', 'best constant'), ('after', 'after'))
    for shift, (key, label) in enumerate(series):
        heights = [task[key] for task in tasks.values()]
        x = places + 0.27 * (shift - 1)
        axes.bar(x, heights, 0.25, label=label, color=COLORS[shift])
        if key != 'best_constant':
            ends = np.array([task[f'{key}_interval'] for task in tasks.values()]).T
            # Clipped at 0, because rounding may put a mean outside an interval of zero width.
            errors = np.maximum((heights - ends[0], ends[1] - heights), 0)
            axes.errorbar(x, heights, errors, fmt='none', ecolor='black', capsize=3)
    axes.set_xticks(places, list(tasks), rotation=15)
    axes.grid(axis='y', alpha=0.3)
    axes.legend(frameon=False)
    save(figure, path)
