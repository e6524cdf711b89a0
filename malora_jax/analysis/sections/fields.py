"""Section on scores and losses against a config field, as in the paper's Figures 4(a) and 4(b)."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from malora_jax.analysis import figures
from malora_jax.analysis.conditions import count, held_out_questions, model_and_seeds
from malora_jax.analysis.page import Picture, Section
from malora_jax.runs import SeedGroup

_LABELS = {'score': 'score (%)', 'loss': 'answer loss (nats per token)'}
_UNITS = {'score': 100.0, 'loss': 1.0}
# An axis is logarithmic if its largest value is at least this multiple of its smallest one.
_MIN_LOG_RATIO = 4

# Points of a line: values of the field in ascending order, each with the row of its runs.
FieldPoints = Sequence[tuple[float, SeedGroup]]


def field_section(
    field: str,
    lines: Mapping[str, FieldPoints],
    metrics: Sequence[str],
    output: pathlib.Path,
    connected: bool = True,
) -> Section:
    """Return the section that shows how scores and losses change with a config field.

    Args:
        field: Dotted name of the config field, which is the horizontal axis of the plot.
        lines: Points of each line of the plot, by the label of the line.
        metrics: Metrics to plot: 'score', 'loss' or both.
        output: Directory of the plot.
        connected: Whether lines connect the points; False for randomly drawn values.
    """
    name = field.rsplit('.', 1)[-1]
    path = output / f'{name}.png'
    _plot(path, name, lines, metrics, 'o-' if connected else 'o')
    caption = (
        f'{" and ".join(_LABELS[metric] for metric in metrics)} against {name}: means over seeds '
        'with their 95% intervals (a single seed has none), and each seed as a small point. '
        "Dashed lines show the paper's numbers, if there are any. "
        f'{" ".join(_best(metric, name, lines) for metric in metrics)}'
    )
    numbers = {
        label: {
            name: [x for x, _ in points],
            **{
                metric: [group.mean_over_seeds(metric) for _, group in points] for metric in metrics
            },
        }
        for label, points in lines.items()
    }
    return Section(f'field-{name}', f'Effect of {field}', [Picture(path, caption)], numbers)


def _best(metric: str, name: str, lines: Mapping[str, FieldPoints]) -> str:
    """Return a sentence about the highest score or the lowest loss of all points."""
    sign = -1 if metric == 'loss' else 1
    label, x, group = max(
        ((label, x, group) for label, points in lines.items() for x, group in points),
        key=lambda point: sign * point[2].mean_over_seeds(metric),
    )
    value = _UNITS[metric] * group.mean_over_seeds(metric)
    kind = 'lowest' if metric == 'loss' else 'highest'
    seeds = count(len(group.by_seed(metric)), 'seed')
    return f'The {kind} {_LABELS[metric]} is {value:.3g}, at {name} {x:g} of {label} ({seeds}).'


@figures.without_mathtext
def _plot(
    path: pathlib.Path,
    name: str,
    lines: Mapping[str, FieldPoints],
    metrics: Sequence[str],
    style: str,
) -> None:
    figure = Figure(figsize=(4.6 * len(metrics) + 1.5, 4), layout='constrained')
    runs = [run for points in lines.values() for _, group in points for run in group.runs]
    figures.state_conditions(
        figure, f'{model_and_seeds(runs)}, {held_out_questions(runs)}, 95% intervals over seeds'
    )
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for color, (label, points) in zip(
            figures.color_cycle(len(lines)), lines.items(), strict=True
        ):
            means = np.array([group.mean_over_seeds(metric) for _, group in points])
            ends = [
                group.interval_over_seeds(metric) or (mean, mean)
                for (_, group), mean in zip(points, means, strict=True)
            ]
            low, high = np.array(ends).T
            axes.errorbar(
                [x for x, _ in points],
                _UNITS[metric] * means,
                _UNITS[metric] * np.maximum((means - low, high - means), 0),
                fmt=style,
                capsize=3,
                color=color,
                label=label,
            )
            seeds = [
                (x, _UNITS[metric] * value)
                for x, group in points
                for value in group.by_seed(metric).values()
            ]
            axes.plot(*np.array(seeds).T, '.', color=color, alpha=0.5)
            paper = [(x, group.paper.average) for x, group in points if group.paper]
            if metric == 'score' and paper:
                label = f'{label}, in the paper'
                axes.plot(*np.array(paper).T, '--x', color=color, label=label)
        _scale(axes, sorted({x for points in lines.values() for x, _ in points}))
        axes.set(xlabel=name.replace('_', ' '), ylabel=_LABELS[metric])
        axes.grid(alpha=0.3)
        figures.mark_truncated(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc='outside right upper', fontsize=8)
    figures.save(figure, path)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] >= _MIN_LOG_RATIO * values[0]:
        axes.set_xscale('log')
        axes.minorticks_off()
    axes.set_xticks(values, [f'{value:g}' for value in values])
