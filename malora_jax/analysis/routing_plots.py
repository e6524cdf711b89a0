"""Plots of routing: expert load, router statistics, and their change over training.

Dimension letters: L layers, J linear modules, G tasks, E experts.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.analysis.figures import (
    PHONE_DPI,
    mark_truncated,
    metric_curve,
    save,
    small_figure,
    state_conditions,
    without_mathtext,
    wrap_name,
)

_GRAY = '0.4'


@without_mathtext
def plot_load(
    path: pathlib.Path,
    load_LGE: np.ndarray,
    tasks: Sequence[str],
    linear: str,
    max_share: float,
    conditions: str,
) -> None:
    """Plot a heat map for each task: the load of each expert of a linear module, by layer.

    Args:
        path: PNG or SVG file to write.
        load_LGE: (L, G, E) fractions of token slots, by layer, task and expert; sum to one over E.
        tasks: Names of the G tasks.
        linear: Name of the linear module.
        max_share: Largest possible fraction for an expert, the end of the color scale.
        conditions: Conditions of the plot, which are written above it.
    """
    experts = load_LGE.shape[-1]
    rows = -(-len(tasks) // 2)
    figure = small_figure(1.6 + 1.7 * rows)
    state_conditions(figure, conditions)
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat
    for load_LE, task, panel in zip(load_LGE.swapaxes(0, 1), tasks, panels, strict=False):
        image = panel.imshow(load_LE, aspect='auto', cmap='magma', vmin=0, vmax=max_share)
        panel.set_title(wrap_name(task, 24), fontsize=9)
        panel.set_xticks(range(experts))
        panel.tick_params(labelsize=8)
    for panel in panels:  # Panels without data.
        panel.set_axis_off()
    for panel in figure.axes[max(0, len(tasks) - 2) : len(tasks)]:
        panel.set_xlabel(f'expert of {linear}', fontsize=9)
        panel.tick_params(labelbottom=True)
    figure.supylabel('layer', fontsize=9)
    bar = figure.colorbar(image, ax=figure.axes, location='bottom', shrink=0.8)
    labels = ['0', f'{1 / experts:.3g}: balanced', f'{max_share:.3g}: the maximum']
    bar.set_ticks([0, 1 / experts, max_share], labels=labels)
    bar.ax.tick_params(labelsize=8)
    save(figure, path, PHONE_DPI)


@without_mathtext
def plot_routers(
    path: pathlib.Path,
    information_JL: np.ndarray,
    effective_JL: np.ndarray,
    linears: Sequence[str],
    chance: float,
    experts: int,
    conditions: str,
) -> None:
    """Plot two heat maps: the task information and the effective experts of each router.

    A heat map has a row for each layer and a column for each linear module.

    Args:
        path: PNG or SVG file to write.
        information_JL: (J, L) task information in bits.
        effective_JL: (J, L) effective number of experts.
        linears: Names of the J linear modules.
        chance: Task information in bits at chance level, which a red line marks on the color bar.
        experts: Number of experts E, which a red line marks on the other color bar.
        conditions: Conditions of the plot, which are written above it.
    """
    figure = small_figure(4.7)
    state_conditions(figure, conditions)
    panels = figure.subplots(1, 2, sharey=True)
    top = max(float(information_JL.max()), 2 * chance, 1e-3)
    heat_maps = (
        ('task information (bits)', information_JL, 'viridis', 0.0, top, chance, 'chance'),
        ('effective experts', effective_JL, 'cividis', 1.0, experts, experts, 'balanced'),
    )
    for panel, (title, values_JL, colormap, low, high, mark, name) in zip(
        panels, heat_maps, strict=True
    ):
        image = panel.imshow(values_JL.T, aspect='auto', cmap=colormap, vmin=low, vmax=high)
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(linears)), linears, rotation=60, fontsize=8)
        bar = figure.colorbar(image, ax=panel, location='bottom', pad=0.02)
        bar.ax.axvline(mark, color='tab:red', linewidth=2)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(f'red: {name} ({mark:.2g})', fontsize=8)
    panels[0].set_ylabel('layer', fontsize=9)
    save(figure, path, PHONE_DPI)


@without_mathtext
def plot_evolution(
    path: pathlib.Path,
    records: Sequence[Mapping[str, Any]],
    held_out: Mapping[str, Sequence[float]],
    lines: Mapping[str, tuple[float, str] | None],
    conditions: str,
) -> None:
    """Plot four router statistics over training, each in its own panel with a reference line.

    The statistics are `balance_loss`, `effective_experts`, `max_expert_share` and
    `task_information`. These names are the keys of `held_out` and `lines`.

    Args:
        path: PNG or SVG file to write.
        records: Records of `metrics.jsonl`, measured on the training batch of each step.
        held_out: For each statistic, its values on held-out questions at several checkpoints; and,
            under the key `step`, the steps of these checkpoints.
        lines: For each statistic, the height and the label of its reference line, such as the value
            at chance level; None for no line.
        conditions: Conditions of the plot, which are written above it.
    """
    names = {
        'balance_loss': 'balance',
        'effective_experts': 'effective experts',
        'max_expert_share': 'largest share',
        'task_information': 'task information (bits)',
    }
    figure = small_figure(5.5)
    state_conditions(figure, conditions)
    panels = figure.subplots(2, 2, sharex=True)
    for panel, (measure, title) in zip(panels.flat, names.items(), strict=True):
        steps, values = metric_curve(records, measure)
        if len(steps):
            panel.plot(steps, values, color='tab:blue', linewidth=1, label='each step, in training')
        panel.plot(
            *(held_out[key] for key in ('step', measure)), 'o', color='tab:orange', label='held-out'
        )
        line = lines[measure]
        if line is not None:
            height, label = line
            panel.axhline(height, color=_GRAY, linestyle='--', linewidth=1)
            title += f'\n(dashed: {label}, {height:.3g})'
        panel.margins(y=0.15)
        if measure != 'balance_loss':  # The load-balancing loss is at least 1.
            panel.set_ylim(bottom=0)
        panel.set_title(title, fontsize=8.5)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        mark_truncated(panel)
    for panel in panels[-1]:
        panel.set_xlabel('step', fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=2, fontsize=8, frameon=False)
    save(figure, path, PHONE_DPI)
