"""Plots of a run, as PNG files. Needs no display."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from malora_jax.analysis.figures import COLOURS, cycle, literally, points, save, smooth
from malora_jax.statistics import Difference


@literally
def plot_losses(path: pathlib.Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Training loss of each task over steps: each step faint, a moving average on top.

    Validation losses, where they were measured, are dashed, with a marker for each evaluation.

    Args:
        path: the PNG to write.
        records: of metrics.jsonl.
        title: above the plot.
    """
    tasks = sorted({key for record in records for key in record if key.startswith('loss/')})
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.add_subplot(xlabel='step', ylabel='answer loss (nats per token)', title=title)
    for colour, task in zip(cycle(len(tasks)), tasks, strict=True):
        points = [(record['step'], record[task]) for record in records if task in record]
        steps, losses = np.array(points).T
        axes.plot(steps, losses, color=colour, alpha=0.2, linewidth=1)
        axes.plot(steps, smooth(losses), color=colour, label=task.removeprefix('loss/'))
        key = f'validation_{task}'
        points = [(r['step'], r[key]) for r in records if key in r]
        if points:
            axes.plot(*np.array(points).T, '--o', color=colour, markersize=3)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, ncols=2)
    save(figure, path)


@literally
def plot_expert_load(
    path: pathlib.Path, loads: Mapping[str, np.ndarray], tasks: Sequence[str], title: str
) -> None:
    """Heat maps of the share of token slots that each expert gets, by layer.

    A row of panels for each adapted linear, a column for each task. Every linear has a router and
    experts of its own, so loads are not averaged over linears.

    Args:
        path: the PNG to write.
        loads: by linear, (L, G, E): shares by layer, task and expert, which sum to one over E.
        tasks: the G names.
        title: above the plot.
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
    label = f'share of token slots (balanced: {1 / experts:.3f}; the top is twice that or more)'
    figure.colorbar(image, ax=panels, label=label, extend='max', shrink=0.6)
    save(figure, path)


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


@literally
def plot_scores(path: pathlib.Path, tasks: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Bars of each task's score before and after, and of the best constant answer.

    Args:
        path: the PNG to write.
        tasks: `tasks` of results.json.
        title: above the plot.
    """
    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.add_subplot(ylabel='share of right answers', title=title, ylim=(0, 1))
    places = np.arange(len(tasks))
    series = (('before', 'before'), ('best_constant', 'best constant'), ('after', 'after'))
    for shift, (key, label) in enumerate(series):
        heights = [task[key] for task in tasks.values()]
        axes.bar(places + 0.27 * (shift - 1), heights, 0.25, label=label, color=COLOURS[shift])
    axes.set_xticks(places, list(tasks), rotation=15)
    axes.grid(axis='y', alpha=0.3)
    axes.legend(frameon=False)
    save(figure, path)


@literally
def plot_step_times(
    path: pathlib.Path, methods: Mapping[str, Mapping[str, Any]], title: str
) -> None:
    """Bars of each step: forward, backward, optimizer on top of each other, as in Figure 4(c).

    Args:
        path: the PNG to write.
        methods: `methods` of a benchmark.
        title: above the plot.
    """
    figure = Figure(figsize=(2 + 1.1 * len(methods), 4), layout='constrained')
    axes = figure.add_subplot(ylabel='seconds per step', title=title)
    places = np.arange(len(methods))
    bottom = np.zeros(len(methods))
    for part in ('forward', 'backward', 'optimizer'):
        heights = np.array([found[f'{part}_s'] for found in methods.values()])
        axes.bar(places, heights, 0.6, bottom=bottom, label=part)
        bottom += heights
    for place, found in zip(places, methods.values(), strict=True):
        ratio = found['ratio_to_base']
        text = '' if ratio is None else f'{ratio:.2f} × base'
        axes.annotate(text, (place, bottom[place]), ha='center', va='bottom', fontsize=8)
    axes.set_xticks(places, list(methods), rotation=20)
    axes.margins(y=0.12)
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=3, fontsize=8)
    save(figure, path)


def plot_growth(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, Sequence[float]]], field: str, title: str
) -> None:
    """Time and memory of a step over the number of experts or their rank, and the least possible.

    Args:
        path: the PNG to write.
        curves: by method, as `benchmark.growth.curves` has them.
        field: what grows.
        title: above the plots.
    """
    figure = Figure(figsize=(9, 4), layout='constrained')
    figure.suptitle(title, fontsize=10)
    panels = (('time', 'step, × base', 1.0), ('bytes', 'memory, GB', 1e9))
    for axes, (key, label, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for colour, (name, curve) in zip(cycle(len(curves)), curves.items(), strict=True):
            values, least = (np.array(curve[k]) / unit for k in (key, f'{key}_floor'))
            axes.plot(curve['size'], values, 'o-', color=colour, label=name)
            axes.plot(curve['size'], least, '--', color=colour, linewidth=1, label=f'{name}, floor')
        axes.set_xscale('log', base=2)
        sizes = next(iter(curves.values()))['size']
        axes.set_xticks(sizes, [f'{size:g}' for size in sizes])
        axes.set_ylim(bottom=0)
        axes.set(xlabel=field, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)
