"""Section on the singular values of the experts' projections (Figure 3 of the paper)."""

import pathlib
from collections.abc import Sequence

import numpy as np

from malora_jax.analysis import similarity_plots
from malora_jax.analysis.adapter_weights import AdapterWeights, adapted_linears, run_projections
from malora_jax.analysis.conditions import model_and_seeds
from malora_jax.analysis.expert_similarity import SIDES
from malora_jax.analysis.expert_spectra import ExpertSpectrum, expert_spectra
from malora_jax.analysis.page import Picture, ReportBlock, Section, Table, Text
from malora_jax.progress import track


def spectra_section(weights: Sequence[AdapterWeights], output: pathlib.Path) -> Section:
    """Return the section on the singular values of the experts' projections.

    It shows how many directions (singular vectors) the experts of each run use.

    Args:
        weights: Adapter weights of the runs.
        output: Directory of the plots.
    """
    blocks: list[ReportBlock] = [
        Text(
            'The A of all experts of a linear are concatenated, and so are the B. If their '
            'singular values fall fast, a few directions do most of the work; if they are level, '
            'the experts use the space evenly.'
        )
    ]
    numbers = {}
    for each in weights:
        name = each.run.name
        names = adapted_linears(each.run.run_config)
        spectra = {
            linear: expert_spectra(*run_projections(each, linear))
            for linear in track(names, f'spectra of {name}', 'linear')
        }
        path = output / f'{each.run.file_name}_spectra.png'
        conditions = f'{each.run.method} on {model_and_seeds([each.run])}'
        similarity_plots.plot_spectra(path, spectra, conditions)
        control = 'the initial A' if each.initial is not None else 'a random matrix'
        mean_A, mean_B = (
            np.mean(
                [one[side].directions.mean() / one[side].max_directions for one in spectra.values()]
            )
            for side in SIDES
        )
        caption = (
            f'Singular values of {name} at step {each.run.report_step} (blue), next to the dashed '
            f'control: for A {control}, for B a random matrix of the same norm. A curve that falls '
            'below its control on the right uses fewer directions than the control. '
            f'{100 * mean_A:.0f}% of the possible directions of A, and {100 * mean_B:.0f}% of '
            "those of B, carry 90% of the squared norm. In the paper's Figure 3, all A together "
            f'use few directions; here, A uses {_comparison(mean_A, mean_B)} B.'
        )
        blocks += [Picture(path, caption), _spectra_table(name, spectra)]
        numbers[name] = {
            linear: {
                side: {
                    'directions': one.directions.tolist(),
                    'control_directions': one.control_directions.tolist(),
                    'possible': one.max_directions,
                }
                for side, one in by_side.items()
            }
            for linear, by_side in spectra.items()
        }
    return Section('spectra', 'How many directions do they use? (Figure 3)', blocks, numbers)


def _comparison(share_A: float, share_B: float) -> str:
    """Return how two shares compare at the precision of the caption, a percent."""
    difference = round(100 * share_A) - round(100 * share_B)
    if not difference:
        return 'the same share as'
    return 'a smaller share than' if difference < 0 else 'a larger share than'


def _spectra_table(name: str, spectra: dict[str, dict[str, ExpertSpectrum]]) -> Table:
    rows = [
        [
            linear,
            *(
                f'{one.directions.mean():.1f} of {one.max_directions} '
                f'({one.control_directions.mean():.1f})'
                for one in by_side.values()
            ),
        ]
        for linear, by_side in spectra.items()
    ]
    return Table(
        f'{name}: number of directions that carry 90% of the squared norm, of those possible; mean '
        'over layers; in parentheses, the number for the control',
        ['linear', 'A', 'B'],
        rows,
    )
