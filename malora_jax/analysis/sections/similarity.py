"""Section on the similarity of the experts' projections, within and across runs (Figure 2)."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from malora_jax.adapters.structures import SharedDown
from malora_jax.analysis import similarity_plots
from malora_jax.analysis.alike import SIDES, Alike, Candidate, comparisons, mean, measure
from malora_jax.analysis.page import NONE, Block, Fold, Picture, Section, Table, Text
from malora_jax.analysis.weights import Weights, linears, projections
from malora_jax.runs import LoadedRun

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


def similarity_section(weights: Sequence[Weights], output: pathlib.Path) -> Section:
    """Return the section on the similarity of projections, within runs and across runs.

    Args:
        weights: Adapter weights of the runs, at least one.
        output: Directory of the plots.
    """
    title = 'How alike are the experts? (Figure 2)'
    names = linears(weights[0].run.settings)
    comparable = [w for w in weights if linears(w.run.settings) == names]
    wanted = comparisons([_candidate(each.run) for each in comparable])
    if not wanted:
        text = (
            'Nothing can be compared: no run here has several experts, and no two runs have the '
            'same method, linears and rank. Give two or more --workdir of one method, such as '
            'runs of single tasks or of other seeds.'
        )
        return Section('similarity', title, [Text(text)], [])
    found = measure(wanted, _projections(comparable, names))
    blocks: list[Block] = [Text(_HOW)]
    others = [w.run.name for w in weights if linears(w.run.settings) != names]
    if others:
        blocks.append(Text(f'Left out, as they adapt other linears: {", ".join(others)}.'))
    if any(isinstance(each.run.settings.adapter.structure, SharedDown) for each in comparable):
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


def _candidate(run: LoadedRun) -> Candidate:
    adapter = run.settings.adapter
    # Only runs with the same method and rank are compared.
    shape = f'{run.method} (rank {adapter.structure.rank})'
    return Candidate(run.name, shape, frozenset(run.tasks), adapter.num_experts)


def _projections(weights: Sequence[Weights], names: Sequence[str]) -> Iterator[Any]:
    for linear in tqdm.tqdm(names, desc='similarity', unit='linear', dynamic_ncols=True):
        yield [projections(each, linear) for each in weights]


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
        return NONE
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
    """Return nested lists with None in place of nan, which JSON does not have."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
