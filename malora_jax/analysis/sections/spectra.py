"""Section on the singular values of the experts' projections (Figure 3 of the paper)."""

import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm

from malora_jax.analysis import similarity_plots
from malora_jax.analysis.alike import SIDES
from malora_jax.analysis.page import Block, Picture, Section, Table, Text
from malora_jax.analysis.spread import Spread, spread
from malora_jax.analysis.weights import Weights, linears, projections


def spectra_section(weights: Sequence[Weights], output: pathlib.Path) -> Section:
    """Return the section on the number of directions that each run's experts use.

    Args:
        weights: Adapter weights of the runs.
        output: Directory of the plots.
    """
    blocks: list[Block] = [
        Text(
            'All A of a linear are put side by side, and so are all B. If their singular values '
            'fall fast, a few directions do most of the work; if they are level, the experts use '
            'their room evenly.'
        )
    ]
    numbers = {}
    for each in weights:
        name = each.run.name
        names = linears(each.run.settings)
        bar = tqdm.tqdm(names, desc=f'spectra of {name}', unit='linear', dynamic_ncols=True)
        found = {linear: spread(*projections(each, linear)) for linear in bar}
        path = output / f'{each.run.file_name}_spectra.png'
        similarity_plots.plot_spectra(path, found)
        control = 'as it started' if each.start is not None else 'of a random matrix'
        mean_A, mean_B = (
            np.mean([one[side].directions.mean() / one[side].possible for one in found.values()])
            for side in SIDES
        )
        caption = (
            f'Singular values of {name} at step {each.run.step}, blue, against the dashed '
            f'control: A {control}, B a random matrix of the same norm; a curve that falls below '
            'its control to the right has fewer directions than chance. 90% of the squared norm is '
            f'in {100 * mean_A:.0f}% of the possible directions of A and {100 * mean_B:.0f}% of B.'
        )
        blocks += [Picture(path, caption), _spectra_table(name, found)]
        numbers[name] = {
            linear: {
                side: {
                    'directions': one.directions.tolist(),
                    'control_directions': one.control_directions.tolist(),
                    'possible': one.possible,
                }
                for side, one in by_side.items()
            }
            for linear, by_side in found.items()
        }
    return Section('spectra', 'How many directions do they use? (Figure 3)', blocks, numbers)


def _spectra_table(name: str, found: dict[str, dict[str, Spread]]) -> Table:
    rows = [
        [
            linear,
            *(
                f'{one.directions.mean():.1f} of {one.possible} '
                f'({one.control_directions.mean():.1f})'
                for one in by_side.values()
            ),
        ]
        for linear, by_side in found.items()
    ]
    return Table(
        f'{name}: directions that carry 90%, of those possible, mean over layers; in parentheses '
        'those of the control',
        ['linear', 'A', 'B'],
        rows,
    )
