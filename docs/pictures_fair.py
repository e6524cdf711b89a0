"""Pictures of the fair comparison, made from the records of its runs.

A study may be unfinished: its pictures then show the runs that are recorded.
"""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.sweeps import fair_methods, fair_rates, fair_task_counts
from docs import fair_number_of_tasks, tables_fair
from malora_jax.analysis.figures import COLORS, metric_curve, save, smooth, without_mathtext

# Rows of study A whose subject is their size.
SIZES = ('malora_small', 'molora_r12', 'molora_same_down', 'lora_active_rank', 'lora_total_rank')
_Draw = Callable[[], Figure]


def _needs(study: str, *rows: str) -> Callable[[_Draw], Callable[[pathlib.Path], None]]:
    """Decorate a function that returns a figure, such that it writes the figure to a path.

    As long as a study has no records, or lacks one of the named rows, the figure only says so.
    """

    def decorate(draw: _Draw) -> Callable[[pathlib.Path], None]:
        @functools.wraps(draw)
        @without_mathtext
        def write(path: pathlib.Path) -> None:
            known = tables_fair.groups(study)
            if known and all(row in known for row in rows):
                figure = draw()
            else:
                figure = Figure(figsize=(5, 1))
                figure.text(0.5, 0.5, tables_fair.NO_RUNS, ha='center')
            save(figure, path)

        return write

    return decorate


@_needs('fair_rates')
def learning_rates() -> Figure:
    """Draw the validation loss of each screened learning rate, by row."""
    figure, axes = _figure(7, 6)
    losses = tables_fair.validation_losses('fair_rates')
    for number, (row, curve) in enumerate(losses.items()):
        color, marker = _color_and_marker(number)
        axes.plot([*curve], [*curve.values()], f'-{marker}', color=color, markersize=4, label=row)
        best = min(curve, key=curve.__getitem__)
        axes.plot(best, curve[best], 'o', color=color, markersize=10, fillstyle='none')
    rates = sorted({rate for curve in losses.values() for rate in curve})
    axes.set(xscale='log', yscale='log', xlabel='learning rate')
    axes.set_xticks(rates, [f'{rate:g}' for rate in rates])
    _set_loss_ticks(axes, (0.35, 0.4, 0.5, 0.7, 1, 2, 4))
    axes.set_ylabel('validation loss (nats per answer token)')
    _legend_at_right(axes)
    return figure


@_needs('fair_methods')
def loss_by_parameters() -> Figure:
    """Draw loss and exact match of the methods, and of the rows about size, by parameters."""
    known = tables_fair.groups('fair_methods')
    figure, left = _figure(10, 4.5, columns=2)
    right = figure.axes[-1]
    names = [name for name in dict.fromkeys((*fair_rates.METHODS, *SIZES)) if name in known]
    for number, name in enumerate(names):
        color, marker = _color_and_marker(number)
        place = tables_fair.trained_parameters(known[name]) / 1e6
        for axes, metric, factor in ((left, 'loss', 1), (right, 'score', 100)):
            values = [factor * value for value in known[name].by_seed(metric).values()]
            axes.plot([place] * len(values), values, 'x', color=color, markersize=4)
            axes.plot(place, np.mean(values), marker, color=color, label=name)
            axes.set_xlabel('trained parameters (millions); crosses: seeds')
    left.set_ylabel('held-out loss (nats per answer token)')
    right.set_ylabel('exact match (%)')
    _legend_at_right(right)
    return figure


@_needs('fair_methods', 'lora')
def differences() -> Figure:
    """Draw the difference of each row's loss from that of LoRA, with its interval."""
    known = tables_fair.groups('fair_methods')
    changes = {name: tables_fair.loss_difference('fair_methods', name, 'lora') for name in known}
    rows = sorted((name for name in known if changes[name]), key=lambda name: changes[name].mean)
    figure, axes = _figure(8, 1.4 + 0.24 * len(rows))
    for place, name in enumerate(rows):
        change = changes[name]
        color = COLORS[_kind(name)]
        axes.plot(change.interval, [place, place], color=color)
        seeds = tables_fair.differences_by_seed('fair_methods', name, 'lora')
        axes.plot(
            change.mean,
            place,
            'o',
            color=color,
            markerfacecolor=color if len(seeds) >= tables_fair.MIN_SEEDS else 'white',
        )
    for color, text in zip(COLORS, ('method', 'ablation', 'control'), strict=False):
        axes.plot([], [], 'o-', color=color, label=text)
    axes.plot([], [], 'o', color='black', markerfacecolor='white', label='one or two seeds')
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color='black', linewidth=1)
    axes.set_xlabel('held-out loss − that of LoRA (nats per answer token), 95% interval')
    axes.legend(frameon=False, fontsize=8)
    return figure


def _kind(row: str) -> int:
    """Return 0 for a method, 1 for an ablation and 2 for a control."""
    kinds = (fair_rates.METHODS, fair_methods.ABLATIONS)
    return next((n for n, names in enumerate(kinds) if row in names), len(kinds))


@_needs('fair_methods')
def training_curves() -> Figure:
    """Draw the smoothed training losses of the methods that the hypotheses are about."""
    known = tables_fair.groups('fair_methods')
    figure, axes = _figure(7, 4)
    for color, name in zip(COLORS, fair_methods.MAIN, strict=False):
        if name in known:
            curves = [metric_curve(run.records, 'loss') for run in known[name].runs]
            mean = np.mean([losses for _, losses in curves], axis=0)
            axes.plot(curves[0][0], smooth(mean), color=color, label=name)
    axes.set(yscale='log', xlabel='step', ylabel='training loss (nats per answer token)')
    _set_loss_ticks(axes, (0.1, 0.2, 0.5, 1, 2))
    axes.legend(frameon=False)
    return figure


@_needs('fair_task_counts')
def task_counts() -> Figure:
    """Draw the differences of MoLoRA and MALoRA from LoRA by the number of tasks."""
    figure, axes = _figure(6, 3.6)
    for number, (method, label) in enumerate(fair_number_of_tasks.MIXTURES.items()):
        curve = fair_number_of_tasks.differences_by_count(method)
        places = [fair_task_counts.COUNTS.index(count) + 0.1 * number for count in curve]
        means = np.array([change.mean for change in curve.values()])
        ends = np.array([change.interval for change in curve.values()]).reshape(-1, 2).T
        errors = np.abs(ends - means)
        axes.errorbar(places, means, errors, fmt='-o', color=COLORS[number], label=label)
    axes.set_xticks(range(len(fair_task_counts.COUNTS)), map(str, fair_task_counts.COUNTS))
    # All counts, also before they have runs.
    axes.set_xlim(-0.5, len(fair_task_counts.COUNTS) - 0.5)
    axes.set(xlabel='number of tasks', ylabel='loss − that of LoRA (nats per token)')
    axes.axhline(0, color='black', linewidth=1)
    _legend_at_right(axes)
    return figure


def _color_and_marker(number: int) -> tuple[tuple[float, ...], str]:
    """Return the color and the marker of a row; those after the tenth have another marker."""
    return COLORS[number % len(COLORS)], 'os'[number // len(COLORS)]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Axes]:
    """Create a figure with a row of axes, and return it with the first of them."""
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return figure, axes[0]


def _set_loss_ticks(axes: Axes, ticks: tuple[float, ...]) -> None:
    limits = axes.get_ylim()
    axes.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.set_ylim(limits)
    axes.minorticks_off()


def _legend_at_right(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))


PICTURES: dict[str, Callable[[pathlib.Path], None]] = {
    'fair_rates.svg': learning_rates,
    'fair_parameters.svg': loss_by_parameters,
    'fair_differences.svg': differences,
    'fair_curves.svg': training_curves,
    'fair_task_counts.svg': task_counts,
}
