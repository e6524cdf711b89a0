"""Plots of a sweep: a metric against a field, as the paper's Figures 4(a) and 4(b)."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from malora_jax.analysis import figures
from malora_jax.sweeps.config import Report, Sweep
from malora_jax.sweeps.expand import SweepRun
from malora_jax.sweeps.found import Group

_LABELS = {'score': 'score (%)', 'loss': 'answer loss (nats per token)'}
_UNITS = {'score': 100.0, 'loss': 1.0}
# From how many times the least value on, an axis is logarithmic.
_WIDE = 4


def fields(runs: Iterable[SweepRun]) -> list[str]:
    """The fields that change and whose values are numbers."""
    names = dict.fromkeys(name for run in runs for name in run.values)
    found = {
        name: {run.values[name] for run in runs if _is_number(run.values[name])} for name in names
    }
    return [name for name, values in found.items() if len(values) > 1]


@figures.literally
def plot(path: pathlib.Path, field: str, sweep: Sweep, found: Sequence[Group]) -> None:
    """A panel for each metric: a line for each of `runs`, over the values of a field.

    Bars are 95% intervals over seeds. Where other fields change too, each of their values has a
    line of its own, but for those that go together with this one. Random values are points without
    a line. The paper's numbers are dashed.

    Args:
        path: the PNG to write.
        field: its dotted name.
        sweep: which fields go together, and what is to be told.
        found: the finished runs.
    """
    report = sweep.report
    lines: dict[str, list[Group]] = {}
    for group in found:
        lines.setdefault(_line(group, sweep.together(group.variant, field)), []).append(group)
    style = 'o' if sweep.draws and field in sweep.draws.fields else 'o-'
    figure = Figure(figsize=(4.6 * len(report.metrics) + 1.5, 4), layout='constrained')
    panels = figure.subplots(1, len(report.metrics), squeeze=False)[0]
    for axes, metric in zip(panels, report.metrics, strict=True):
        colours = figures.cycle(len(lines))
        for colour, (label, of_line) in zip(colours, lines.items(), strict=True):
            of_line = sorted(of_line, key=lambda group: _x(group, field))
            _draw(axes, field, metric, label, of_line, style, colour)
            if metric == 'score':
                _draw_paper(axes, field, report, label, of_line, colour)
        _scale(axes, sorted({_x(group, field) for group in found}))
        axes.set(xlabel=field.rsplit('.', 1)[-1].replace('_', ' '), ylabel=_LABELS[metric])
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc='outside right upper', fontsize=8)
    figures.save(figure, path)


def _draw(
    axes: Axes,
    field: str,
    metric: str,
    label: str,
    of_line: Sequence[Group],
    style: str,
    colour: Any,
) -> None:
    means = np.array([group.mean(metric) for group in of_line])
    intervals = [
        group.interval(metric) or (mean, mean) for group, mean in zip(of_line, means, strict=True)
    ]
    low, high = np.array(intervals).T
    axes.errorbar(
        [_x(group, field) for group in of_line],
        _UNITS[metric] * means,
        _UNITS[metric] * np.maximum((means - low, high - means), 0),
        fmt=style,
        capsize=3,
        color=colour,
        label=label,
    )


def _draw_paper(
    axes: Axes, field: str, report: Report, label: str, of_line: Sequence[Group], colour: Any
) -> None:
    points = [
        (_x(group, field), paper.average) for group in of_line if (paper := group.paper(report))
    ]
    if points:
        axes.plot(*np.array(points).T, '--x', color=colour, label=f'{label}, in the paper')


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] >= _WIDE * values[0]:
        axes.set_xscale('log')
        axes.minorticks_off()
    axes.set_xticks(values, [f'{value:g}' for value in values])


def _line(group: Group, together: set[str]) -> str:
    """What a line is of: the run, and other fields that change."""
    others = [
        f'{name.rsplit(".", 1)[-1]} {value}'
        for name, value in group.values.items()
        if name not in together
    ]
    return ', '.join([group.variant, *others])


def _x(group: Group, field: str) -> float:
    """The value of a field: the sweep's, which is r and not r̄ of a rank, or the config's."""
    return group.values.get(field, flatten_dict(dict(group.config), sep='.').get(field))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
