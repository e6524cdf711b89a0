"""Shared helpers of all plots: colors, curves, and writing files without a display."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from malora_jax import files

# Decorator that disables mathtext, because names of tasks and runs may contain dollar signs.
without_mathtext = matplotlib.rc_context({'text.parse_math': False})
# Width in inches and resolution in dots per inch of figures that fit a phone's screen.
PHONE_WIDTH, PHONE_DPI = 4.3, 180
COLORS = [matplotlib.colormaps['tab10'](i) for i in range(10)]
# Number of steps in the moving average of a loss.
SMOOTHING = 9
# Number of characters of a plot's conditions that fit into an inch.
_CHARACTERS_PER_INCH = 15
# Matplotlib would write its version and, into SVG files, the date.
_METADATA: Mapping[str, Any] = {'.png': {'Software': None}, '.svg': {'Creator': None, 'Date': None}}
# Without a fixed salt, the ids in SVG files are random. Text stays text, which can be searched.
_SVG_OPTIONS: Any = {'svg.hashsalt': 'malora_jax', 'svg.fonttype': 'none'}


def metric_curve(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a metric, from the records that have it.

    Args:
        records: Records of `metrics.jsonl`.
        name: Name of the metric.

    Returns:
        Two arrays (N,), with N the number of records that have the metric.
    """
    taken = [(record['step'], record[name]) for record in records if name in record]
    steps, values = np.array(taken).reshape(-1, 2).T
    return steps, values


def smooth(values: np.ndarray, window: int = SMOOTHING) -> np.ndarray:
    """Return the centered moving average; at the ends, the window is truncated.

    Args:
        values: (N,) array.
        window: Length of the window.
    """
    ones = np.ones(min(window, len(values)))
    count = np.convolve(np.ones(len(values)), ones, mode='same')
    return np.convolve(values, ones, mode='same') / count


def color_cycle(count: int) -> list[Any]:
    """Return a list of `count` colors that repeats the palette if it is too short."""
    return [COLORS[i % len(COLORS)] for i in range(count)]


def wrap_name(name: str, width: int) -> str:
    """Return a name with line breaks after underscores, for lines of at most `width` characters."""
    lines = textwrap.wrap(name.replace('_', '_ '), width)
    return '\n'.join(line.replace('_ ', '_') for line in lines)


def small_figure(height: float) -> Figure:
    """Create a figure for the width of a phone's screen, so that its text stays readable.

    Args:
        height: Height in inches.
    """
    return Figure(figsize=(PHONE_WIDTH, height), layout='constrained')


def state_conditions(figure: Figure, conditions: str) -> None:
    """Write the conditions of a plot above it, in small gray text.

    Args:
        figure: Figure with the plot.
        conditions: Model, seeds and number of samples; '' writes nothing.
    """
    lines = textwrap.wrap(conditions, int(_CHARACTERS_PER_INCH * figure.get_figwidth()))
    figure.suptitle('\n'.join(lines), fontsize=8, color='0.35')


def mark_truncated(axes: Axes) -> None:
    """Mark the vertical axis of a plot if it does not start at zero."""
    if min(axes.get_ylim()) > 0:
        axes.annotate(
            '≈ not from 0',
            (0, 0),
            (3, 2),
            xycoords='axes fraction',
            textcoords='offset points',
            fontsize=7,
            color='0.35',
        )


def save(figure: Figure, path: pathlib.Path, dpi: int = 120) -> None:
    """Write a figure as a PNG or SVG file, atomically.

    The same figure always gives the same bytes: the file has no date and no version.

    Args:
        figure: Figure to write.
        path: File to write; its suffix, .png or .svg, is the format.
        dpi: Resolution of PNG files in dots per inch.
    """
    with files.atomic_write(path) as temporary, matplotlib.rc_context(_SVG_OPTIONS):
        figure.savefig(temporary, dpi=dpi, metadata=_METADATA[path.suffix])
