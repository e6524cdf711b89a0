"""Plots of the experts' projections: similarity and singular values (Figures 2 and 3 of the paper).

Dimension letters: J linear modules, L layers, K singular values.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D

from malora_jax.analysis.expert_similarity import SIDES, ExpertSimilarity, nan_mean
from malora_jax.analysis.expert_spectra import ExpertSpectrum
from malora_jax.analysis.figures import (
    PHONE_DPI,
    color_cycle,
    save,
    small_figure,
    state_conditions,
    without_mathtext,
)

_GRAY = '0.55'


@without_mathtext
def plot_similarity(
    path: pathlib.Path,
    similarities: Sequence[ExpertSimilarity],
    linears: Sequence[str],
    conditions: str,
) -> None:
    """Plot the similarity of the experts' projections in each linear module.

    The upper panel shows down-projections (A), the lower panel up-projections (B). Dots are means
    over layers. Bars reach from the smallest to the largest value of any layer. Hollow circles show
    the similarity before training. Gray dashes show that of independent random subspaces.

    Args:
        path: PNG or SVG file to write.
        similarities: Similarities of each comparison. Each comparison has its own color.
        linears: Names of the J linear modules.
        conditions: Conditions of the plot, which are written above it.
    """
    figure = small_figure(5.9 + 0.25 * len(similarities))
    state_conditions(figure, conditions)
    panels = figure.subplots(len(SIDES), 1, sharex=True)
    places = np.arange(len(linears))
    width = 0.7 / len(similarities)
    for panel, side in zip(panels, SIDES, strict=True):
        for number, (color, similarity) in enumerate(
            zip(color_cycle(len(similarities)), similarities, strict=True)
        ):
            if side not in similarity.sides:
                continue
            x = places + (number - (len(similarities) - 1) / 2) * width
            one = similarity.sides[side]
            low, high = np.nanmin(one.trained, axis=1), np.nanmax(one.trained, axis=1)
            panel.vlines(x, low, high, color=color, alpha=0.35, linewidth=3)
            panel.plot(x, nan_mean(one.trained, axis=1), 'o', color=color, markersize=5)
            if one.start is not None:
                start_J = nan_mean(one.start, axis=1)
                panel.plot(x, start_J, 'o', color=color, markersize=9, fillstyle='none')
            half = 0.45 * width
            independent_J = nan_mean(one.independent, axis=1)
            panel.hlines(independent_J, x - half, x + half, color=_GRAY, linestyle='--')
        panel.set_title(f'{side}', loc='left', fontsize=11, fontweight='bold')
        panel.set_ylabel('similarity (1 = the same)', fontsize=9)
        panel.set_ylim(0, None)
        panel.margins(y=0.1)
        panel.grid(axis='y', alpha=0.3)
    panels[-1].set_xticks(places, linears)
    panels[-1].set_xlabel('linear', fontsize=9)
    named = zip(color_cycle(len(similarities)), similarities, strict=True)
    handles = [Line2D([], [], color=c, marker='o', linestyle='', label=a.label) for c, a in named]
    handles.append(
        Line2D(
            [], [], color='k', marker='o', fillstyle='none', linestyle='', label='before training'
        )
    )
    handles.append(Line2D([], [], color=_GRAY, linestyle='--', label='independent subspaces'))
    figure.legend(handles=handles, loc='outside lower center', fontsize=8, frameon=False)
    save(figure, path, PHONE_DPI)


@without_mathtext
def plot_similarity_by_layer(
    path: pathlib.Path,
    similarities: Sequence[ExpertSimilarity],
    linears: Sequence[str],
    side: str,
    conditions: str,
) -> None:
    """Plot similarity over layers, with a panel for each linear module.

    Lines are solid after training, dotted before training, and dashed for independent subspaces.

    Args:
        path: PNG or SVG file to write.
        similarities: Similarities of each comparison. Each comparison has its own color.
        linears: Names of the J linear modules.
        side: Projection to plot: 'A' (down-projection) or 'B' (up-projection).
        conditions: Conditions of the plot, which are written above it.
    """
    similarities = [similarity for similarity in similarities if side in similarity.sides]
    rows = -(-len(linears) // 2)
    figure = small_figure(1.4 + 1.45 * rows + 0.2 * len(similarities))
    state_conditions(figure, conditions)
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat
    for j, (linear, panel) in enumerate(zip(linears, panels, strict=False)):
        for color, similarity in zip(color_cycle(len(similarities)), similarities, strict=True):
            one = similarity.sides[side]
            panel.plot(one.trained[j], color=color, label=similarity.label if j == 0 else None)
            if one.start is not None:
                panel.plot(one.start[j], ':', color=color)
            panel.plot(one.independent[j], '--', color=_GRAY, linewidth=1)
        panel.set_title(linear, fontsize=10)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylim(0, None)
    for panel in panels:  # Panels without data.
        panel.set_axis_off()
    for panel in figure.axes[max(0, len(linears) - 2) : len(linears)]:
        panel.set_xlabel('layer', fontsize=9)
        panel.tick_params(labelbottom=True)
    figure.supylabel(f'similarity of {side}', fontsize=9)
    figure.legend(loc='outside lower center', fontsize=8, frameon=False)
    save(figure, path, PHONE_DPI)


@without_mathtext
def plot_spectra(
    path: pathlib.Path, spectra: Mapping[str, Mapping[str, ExpertSpectrum]], conditions: str
) -> None:
    """Plot the singular values of the experts' concatenated projections.

    Each linear module has a row of two panels: down-projections (A) and up-projections (B). In each
    panel, a line is the median over layers, and a band reaches from the smallest to the largest
    value of any layer. A dashed line is the control (see `ExpertSpectrum`). A vertical line marks
    the number of directions that carry 90% of the squared norm.

    Args:
        path: PNG or SVG file to write.
        spectra: Singular values by linear module, then by projection, 'A' or 'B'.
        conditions: Conditions of the plot, which are written above it.
    """
    figure = small_figure(1.3 + 1.25 * len(spectra))
    state_conditions(figure, conditions)
    panels = figure.subplots(len(spectra), 2, squeeze=False)
    for row, (linear, by_side) in zip(panels, spectra.items(), strict=True):
        for panel, (side, one) in zip(row, by_side.items(), strict=True):
            number_K = np.arange(1, one.trained.shape[1] + 1)
            panel.fill_between(
                number_K, one.trained.min(axis=0), one.trained.max(axis=0), alpha=0.2
            )
            panel.plot(number_K, np.median(one.trained, axis=0))
            panel.plot(number_K, np.median(one.control, axis=0), '--', color=_GRAY)
            panel.axvline(one.directions.mean(), color='tab:red', linewidth=1)
            panel.set_ylim(0, None)
            panel.set_title(f'{side} of {linear}', fontsize=9)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel('index of the singular value', fontsize=9)
    figure.supylabel('singular value', fontsize=9)
    handles = [
        Line2D([], [], color='tab:blue', label='trained: median and range of layers'),
        Line2D([], [], color=_GRAY, linestyle='--', label='control: initial A, or random matrix'),
        Line2D([], [], color='tab:red', label='number of directions that carry 90%'),
    ]
    figure.legend(handles=handles, loc='outside lower center', fontsize=8, frameon=False)
    save(figure, path, PHONE_DPI)
