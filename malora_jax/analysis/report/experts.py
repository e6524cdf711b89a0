"""The parts of the report that are about weights: Figures 2 and 3."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from malora_jax.adapters.structures import SharedDown
from malora_jax.analysis import similarity_plots
from malora_jax.analysis.alike import SIDES, Alike, Candidate, comparisons, mean, measure
from malora_jax.analysis.report.page import Block, Fold, Picture, Section, Table, Text
from malora_jax.analysis.report.runs import Subject
from malora_jax.analysis.spread import Spread, spread
from malora_jax.analysis.weights import (
    Adapter,
    linears,
    projections_of,
    read_adapter,
    start_adapter,
)

_HOW = (
    'The similarity of two projections is the mean of the squared canonical correlations of the '
    'subspaces that they span (R² of CCA): 1 = the same subspace, 0 = orthogonal ones. Experts '
    'whose start is alike stay alike, trained or not: so each number stands beside what it was '
    'at the start of the same runs, and beside what independent subspaces of these sizes '
    'would have.'
)
_COMPOSED = (
    'A of an expert is P S_A here, all that it does to an input before B: the experts of a '
    'linear share the few directions of S_A, so that they are alike from the start.'
)


class Weights(NamedTuple):
    """A run's adapter, as trained and as it started (None if that is not known)."""

    subject: Subject
    trained: Adapter
    start: Adapter | None


def read_weights(subjects: Sequence[Subject]) -> list[Weights]:
    """The adapters of the checkpoints that stand for the runs."""
    bar = tqdm.tqdm(subjects, desc='weights', unit='run', dynamic_ncols=True)
    return [
        Weights(
            each,
            read_adapter(each.path, each.run, each.step),
            start_adapter(each.path, each.run),
        )
        for each in bar
    ]


def similarity_section(weights: Sequence[Weights], output: pathlib.Path) -> Section:
    """Return the section on the similarity of projections, within runs and across them."""
    title = 'How alike are the experts? (Figure 2)'
    names = linears(weights[0].subject.run)
    comparable = [w for w in weights if linears(w.subject.run) == names]
    wanted = comparisons([_candidate(each.subject) for each in comparable])
    if not wanted:
        text = (
            'Nothing can be compared: no run here has several experts, and no two runs have the '
            'same method, linears and rank. Give two or more --workdir of one method, such as '
            'runs of single tasks or of other seeds.'
        )
        return Section('similarity', title, [Text(text)], [])
    found = measure(wanted, _projections(comparable, names))
    blocks: list[Block] = [Text(_HOW)]
    others = [w.subject.name for w in weights if linears(w.subject.run) != names]
    if others:
        blocks.append(Text(f'Left out, as they adapt other linears: {", ".join(others)}.'))
    if any(isinstance(each.subject.run.adapter.structure, SharedDown) for each in comparable):
        blocks.append(Text(_COMPOSED))
    if any(each.start is None for each in comparable):
        blocks.append(
            Text('A run that started from an adapter has no random start to be held against.')
        )
    path = output / 'similarity.png'
    similarity_plots.plot_similarity(path, found, names)
    caption = (
        'Similarity of A and of B by linear: dots are the mean over layers and bars the range of '
        f'layers; compare each with its hollow circle (the start) and its grey dash (independent). '
        f'{_verdict(found)}'
    )
    blocks.append(Picture(path, caption))
    blocks += [_table(found, side) for side in SIDES if any(side in a.sides for a in found)]
    blocks.append(Fold('By layer and linear', _by_layer(found, names, output)))
    return Section('similarity', title, blocks, [_numbers(each, names) for each in found])


def spectra_section(weights: Sequence[Weights], output: pathlib.Path) -> Section:
    """Over how many directions each run's experts spread."""
    blocks: list[Block] = [
        Text(
            'All A of a linear are put side by side, and so are all B. If their singular values '
            'fall fast, a few directions do most of the work; if they are level, the experts use '
            'their room evenly.'
        )
    ]
    numbers = {}
    for each in weights:
        name = each.subject.name
        names = linears(each.subject.run)
        bar = tqdm.tqdm(names, desc=f'spectra of {name}', unit='linear', dynamic_ncols=True)
        found = {linear: spread(*_of_linear(each, linear)) for linear in bar}
        path = output / f'{each.subject.file_name}_spectra.png'
        similarity_plots.plot_spectra(path, found)
        control = 'as it started' if each.start is not None else 'of a random matrix'
        mean_A, mean_B = (
            np.mean([one[side].directions.mean() / one[side].possible for one in found.values()])
            for side in SIDES
        )
        caption = (
            f'Singular values of {name} at step {each.subject.step}, blue, against the dashed '
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


def _candidate(subject: Subject) -> Candidate:
    adapter = subject.run.adapter
    # Runs of one method with other ranks would be another comparison.
    shape = f'{subject.run.method} (rank {adapter.structure.rank})'
    return Candidate(subject.name, shape, frozenset(subject.tasks), adapter.num_experts)


def _of_linear(weights: Weights, linear: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    structure = weights.subject.run.adapter.structure
    start = None if weights.start is None else projections_of(structure, weights.start, linear)
    return projections_of(structure, weights.trained, linear), start


def _projections(weights: Sequence[Weights], names: Sequence[str]) -> Iterator[Any]:
    for linear in tqdm.tqdm(names, desc='similarity', unit='linear', dynamic_ncols=True):
        yield [_of_linear(each, linear) for each in weights]


def _verdict(found: Sequence[Alike]) -> str:
    """Summarize the change of A and B by training, in the first comparison."""
    first = found[0]
    parts = []
    for side, one in first.sides.items():
        before = one.independent if one.start is None else one.start
        name = 'for independent ones' if one.start is None else 'at the start'
        parts.append(
            f'{side} {mean(one.trained):.3f} against {mean(before):.3f} {name} '
            f'({mean(one.trained) - mean(before):+.3f})'
        )
    return f'On average of {first.label}: {"; ".join(parts)}.'


def _table(found: Sequence[Alike], side: str) -> Table:
    rows = []
    for alike in found:
        if side not in alike.sides:
            continue
        one = alike.sides[side]
        trained, independent = mean(one.trained), mean(one.independent)
        start = None if one.start is None else mean(one.start)
        made = trained - (independent if start is None else start)
        cells: list[Any] = [trained, start, independent]
        rows.append(
            [
                f'{alike.label} ({alike.pairs} pair{"s" * (alike.pairs != 1)})',
                *(_number(cell) for cell in cells),
                'unknown' if np.isnan(made) else f'{made:+.3f}',
            ]
        )
    caption = f'Similarity of {side}, mean over layers and linears'
    if side == 'B':
        caption += '; B starts at zero, so training is held against independent subspaces'
    return Table(
        caption, ['compared', 'trained', 'start', 'inde\u00adpendent', 'training made'], rows
    )


def _number(value: float | None) -> str:
    if value is None:
        return '–'
    return 'no update' if np.isnan(value) else f'{value:.3f}'


def _by_layer(found: Sequence[Alike], names: Sequence[str], output: pathlib.Path) -> list[Block]:
    blocks: list[Block] = []
    for side in SIDES:
        if any(side in alike.sides for alike in found):
            path = output / f'similarity_{side}.png'
            similarity_plots.plot_similarity_by_layer(path, found, names, side)
            caption = (
                f'Similarity of {side} in each layer, a panel for each linear: solid as trained, '
                'dotted at the start (where it is known), dashed grey if they were independent.'
            )
            blocks.append(Picture(path, caption))
    return blocks


def _numbers(alike: Alike, names: Sequence[str]) -> dict[str, Any]:
    sides = {
        side: {
            key: None if values is None else dict(zip(names, _lists(values), strict=True))
            for key, values in one._asdict().items()
        }
        for side, one in alike.sides.items()
    }
    return {'compared': alike.label, 'pairs': alike.pairs, **sides}


def _lists(values: np.ndarray) -> list[list[float | None]]:
    """JSON has no word for what is not a number."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


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
