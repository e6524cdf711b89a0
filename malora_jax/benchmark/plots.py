"""Plots of benchmarks, as PNG or SVG files."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from malora_jax.analysis.figures import color_cycle, save, without_mathtext


@without_mathtext
def plot_step_times(
    path: pathlib.Path, methods: Mapping[str, Mapping[str, Any]], title: str
) -> None:
    """Plot a bar per method: the median time of a step, with its quartiles.

    The lower part of a bar is the forward pass; the rest is the backward pass and the optimizer.
    Figure 4(c) of the MALoRA paper is such a plot.

    Args:
        path: PNG or SVG file to write.
        methods: Measurements by method: `methods` in the result of `run.benchmark`.
        title: Title of the plot.
    """
    figure = Figure(figsize=(2 + 1.1 * len(methods), 4), layout='constrained')
    rounds = min(found['rounds'] for found in methods.values())
    label = f'seconds per step\n(median of {rounds} rounds, quartiles)'
    axes = figure.add_subplot(ylabel=label, title=title)
    positions = np.arange(len(methods))
    step = np.array([found['step_s'] for found in methods.values()])
    forward = np.array([found['forward_s'] for found in methods.values()])
    quartiles = np.array([found['step_quartiles_s'] for found in methods.values()]).T
    axes.bar(positions, forward, 0.6, label='forward')
    axes.bar(positions, step - forward, 0.6, bottom=forward, label='backward and optimizer')
    errors = np.abs(quartiles - step)
    axes.errorbar(positions, step, yerr=errors, fmt='none', color='black', capsize=4)
    for position, measurements in zip(positions, methods.values(), strict=True):
        ratio, top = measurements['ratio_to_base'], measurements['step_quartiles_s'][1]
        text = f'{measurements["step_s"]:.2f} s'
        axes.annotate(
            text if ratio is None else f'{text}\n{ratio:.2f} × base',
            (position, top),
            (0, 3),
            textcoords='offset points',
            ha='center',
            va='bottom',
            fontsize=8,
        )
    axes.set_xticks(positions, list(methods), rotation=20)
    axes.margins(y=0.2)
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=2, fontsize=8, loc='upper left')
    save(figure, path)


def plot_sizes(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, Sequence[float]]], field: str, title: str
) -> None:
    """Plot step time and memory, with lower bounds, against the number of experts or the rank.

    Args:
        path: PNG or SVG file to write.
        curves: Curves by method, from `adapter_sizes.curves`.
        field: Name of the varied field, used as the label of the x axis.
        title: Title above both plots.
    """
    figure = Figure(figsize=(9, 4), layout='constrained')
    figure.suptitle(title, fontsize=10)
    panels = (('time', 'step, × base', 1.0), ('bytes', 'memory, GB', 1e9))
    for axes, (key, label, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for color, (name, curve) in zip(color_cycle(len(curves)), curves.items(), strict=True):
            values, lower_bound = (np.array(curve[k]) / unit for k in (key, f'{key}_floor'))
            axes.plot(curve['size'], values, 'o-', color=color, label=name)
            axes.plot(
                curve['size'],
                lower_bound,
                '--',
                color=color,
                linewidth=1,
                label=f'{name}, lower bound',
            )
        axes.set_xscale('log', base=2)
        sizes = next(iter(curves.values()))['size']
        axes.set_xticks(sizes, [f'{size:g}' for size in sizes])
        axes.set_ylim(bottom=0)
        axes.set(xlabel=field, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)
