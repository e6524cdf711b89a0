"""What all plots share: colours, curves, and the writing of a PNG. Needs no display."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from malora_jax import files

# Names of tasks and runs are shown as they are, a dollar sign too.
literally = matplotlib.rc_context({'text.parse_math': False})
# Inches; at twice a telephone's pixels for each of them.
PHONE, PHONE_DPI = 4.3, 180
COLOURS = [matplotlib.colormaps['tab10'](i) for i in range(10)]


def points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, where it was taken."""
    taken = [(record['step'], record[name]) for record in records if name in record]
    steps, values = np.array(taken).reshape(-1, 2).T
    return steps, values


def smooth(values: np.ndarray, window: int = 9) -> np.ndarray:
    """Centred moving average, over what there is of the window at the ends."""
    ones = np.ones(min(window, len(values)))
    count = np.convolve(np.ones(len(values)), ones, mode='same')
    return np.convolve(values, ones, mode='same') / count


def cycle(count: int) -> list[Any]:
    """As many colours, from the first again after the last."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def wrapped(name: str, width: int) -> str:
    """A name in lines, broken after underscores where it is too long for one."""
    lines = textwrap.wrap(name.replace('_', '_ '), width)
    return '\n'.join(line.replace('_ ', '_') for line in lines)


def small_figure(height: float) -> Figure:
    """A figure of a telephone's width, on which its letters can be read."""
    return Figure(figsize=(PHONE, height), layout='constrained')


def save(figure: Figure, path: pathlib.Path, dpi: int = 120) -> None:
    """Writes the figure as a whole or not at all."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
