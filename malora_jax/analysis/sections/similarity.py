"""Section on the similarity of the experts' projections, within and across runs (Figure 2)."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from malora_jax.adapters.structures import SharedDown
from malora_jax.analysis import similarity_plots
from malora_jax.analysis.adapter_weights import AdapterWeights, adapted_linears, run_projections
from malora_jax.analysis.conditions import count, model_and_seeds
from malora_jax.analysis.expert_similarity import (
    SIDES,
    ComparedRun,
    ExpertSimilarity,
    SideSimilarity,
    comparable_pairs,
    expert_similarities,
    nan_mean,
)
from malora_jax.analysis.page import NO_VALUE, Fold, Picture, ReportBlock, Section, Table, Text
from malora_jax.progress import track
from malora_jax.runs import LoadedRun

_METHOD_TEXT = (
    'The similarity of two projections is the mean of the squared canonical correlations of the '
    'subspaces that they span (R² of CCA): 1 = the same subspace, 0 = orthogonal ones. Experts '
    'that start similar stay similar, trained or not. Each value is therefore shown next to the '
    'value before training, and next to the expected value for independent random subspaces of '
    'the same sizes.'
)
_SHARED_DOWN_TEXT = (
    'Here, A of an expert is P S_A, its whole down-projection. The experts of a linear share the '
    'few directions of S_A, so they are similar from the start.'
)


def similarity_section(weights: Sequence[AdapterWeights], output: pathlib.Path) -> Section:
    """Return the section on the similarity of projections, within runs and across runs.

    Args:
        weights: Adapter weights of the runs, at least one.
        output: Directory of the plots.
    """
    title = 'How similar are the experts? (Figure 2)'
    names = adapted_linears(weights[0].run.run_config)
    comparable = [w for w in weights if adapted_linears(w.run.run_config) == names]
    run_pairs = comparable_pairs([_compared_run(each.run) for each in comparable])
    if not run_pairs:
        text = (
            'Nothing can be compared: no run here has several experts, and no two runs have the '
            'same method, linears and rank. Add more runs of one method with --workdir, such as '
            'single-task runs or runs with other seeds.'
        )
        return Section('similarity', title, [Text(text)], [])
    similarities = expert_similarities(run_pairs, _projections(comparable, names))
    blocks: list[ReportBlock] = [Text(_METHOD_TEXT)]
    others = [w.run.name for w in weights if adapted_linears(w.run.run_config) != names]
    if others:
        blocks.append(Text(f'Skipped, because they adapt other linears: {", ".join(others)}.'))
    if any(isinstance(each.run.run_config.adapter.structure, SharedDown) for each in comparable):
        blocks.append(Text(_SHARED_DOWN_TEXT))
    if any(each.initial is None for each in comparable):
        blocks.append(
            Text(
                'The initial adapter of some runs is unknown, because they started from another '
                'adapter or are too old. They have no value before training.'
            )
        )
    path = output / 'similarity.png'
    conditions = model_and_seeds([each.run for each in comparable])
    similarity_plots.plot_similarity(path, similarities, names, conditions)
    caption = (
        'Similarity of A and of B by linear. Dots are the mean over layers, bars the range of '
        f'layers. Compare each with its hollow circle (before training) and its gray dash '
        '(independent subspaces). '
        f'{_summary(similarities)} {_against_the_paper(similarities)}'
    )
    blocks.append(Picture(path, caption))
    blocks += [
        _table(similarities, side) for side in SIDES if any(side in a.sides for a in similarities)
    ]
    by_layer = _plot_by_layer(similarities, names, conditions, output)
    blocks.append(Fold('By layer and linear', by_layer))
    return Section('similarity', title, blocks, [_numbers(each, names) for each in similarities])


def _compared_run(run: LoadedRun) -> ComparedRun:
    adapter = run.run_config.adapter
    # Only runs with the same method and rank are compared.
    method_and_rank = f'{run.method} (rank {adapter.structure.rank})'
    # An adapter with parameters for each task has the projections of each task.
    num_experts = len(adapter.tasks) or adapter.num_experts
    return ComparedRun(run.name, method_and_rank, frozenset(run.tasks), num_experts)


def _projections(weights: Sequence[AdapterWeights], names: Sequence[str]) -> Iterator[Any]:
    for linear in track(names, 'similarity', 'linear'):
        yield [run_projections(each, linear) for each in weights]


def _summary(similarities: Sequence[ExpertSimilarity]) -> str:
    """Return a sentence on how training changed the similarity of the projections A and B.

    It describes the first comparison only.
    """
    first = similarities[0]
    parts = []
    for side, one in first.sides.items():
        before = one.independent if one.start is None else one.start
        name = 'for independent subspaces' if one.start is None else 'before training'
        parts.append(
            f'{side} {nan_mean(one.trained):.3f} compared with {nan_mean(before):.3f} {name} '
            f'({nan_mean(one.trained) - nan_mean(before):+.3f})'
        )
    return f'Averages of {first.label}: {"; ".join(parts)}.'


def _against_the_paper(similarities: Sequence[ExpertSimilarity]) -> str:
    """Return a sentence that compares A and B with the paper's observation."""
    # Comparisons whose B is still zero are omitted: they have no similarity of B.
    both = [
        [similarity.sides[side] for side in SIDES]
        for similarity in similarities
        if len(similarity.sides) == len(SIDES)
        and not np.isnan(nan_mean(similarity.sides['B'].trained))
    ]
    if not both:
        return ''
    level = [_excess(a, a.independent) > _excess(b, b.independent) for a, b in both]
    change = [
        _excess(a, a.start) > _excess(b, b.independent) for a, b in both if a.start is not None
    ]
    text = (
        "In the paper's Figure 2, the A of experts are similar and the B are not. Here, A exceeds "
        f'independent subspaces by more than B does in {_share(level)}.'
    )
    if change:
        text += f' By the change since the start, A is ahead of B in {_share(change)}.'
    return text


def _excess(one: SideSimilarity, reference: np.ndarray) -> float:
    return float(nan_mean(one.trained) - nan_mean(reference))


def _share(is_like_paper: Sequence[bool]) -> str:
    """Return the number of comparisons that agree with the paper, in words."""
    number, total = sum(is_like_paper), len(is_like_paper)
    verdict = {0: ', the reverse of the paper', total: ', as in the paper'}.get(number, '')
    return f'{number} of {count(total, "comparison")}{verdict}'


def _table(similarities: Sequence[ExpertSimilarity], side: str) -> Table:
    rows = []
    for similarity in similarities:
        if side not in similarity.sides:
            continue
        one = similarity.sides[side]
        trained, independent = nan_mean(one.trained), nan_mean(one.independent)
        start = None if one.start is None else nan_mean(one.start)
        change = trained - (independent if start is None else start)
        cells: list[Any] = [trained, start, independent]
        pairs = count(similarity.pairs[side], 'pair')
        rows.append(
            [
                f'{similarity.label} ({pairs})',
                *(_number(cell) for cell in cells),
                'unknown' if np.isnan(change) else f'{change:+.3f}',
            ]
        )
    caption = f'Similarity of {side}, mean over layers and linears'
    if side == 'B':
        caption += '; B starts at zero, so it is compared with independent subspaces'
    return Table(caption, ['compared', 'trained', 'start', 'inde\u00adpendent', 'change'], rows)


def _number(value: float | None) -> str:
    if value is None:
        return NO_VALUE
    return 'no update' if np.isnan(value) else f'{value:.3f}'


def _plot_by_layer(
    similarities: Sequence[ExpertSimilarity],
    names: Sequence[str],
    conditions: str,
    output: pathlib.Path,
) -> list[ReportBlock]:
    blocks: list[ReportBlock] = []
    for side in SIDES:
        if any(side in similarity.sides for similarity in similarities):
            path = output / f'similarity_{side}.png'
            similarity_plots.plot_similarity_by_layer(path, similarities, names, side, conditions)
            first = next(similarity for similarity in similarities if side in similarity.sides)
            trained = first.sides[side].trained
            caption = (
                f'Similarity of {side} in each layer, with a panel for each linear: solid after '
                'training, dotted before training (if known), dashed gray for independent '
                'subspaces.'
            )
            if not np.isnan(trained).all():
                caption += (
                    f' After training, {first.label} range from {np.nanmin(trained):.3f} to '
                    f'{np.nanmax(trained):.3f}.'
                )
            blocks.append(Picture(path, caption))
    return blocks


def _numbers(similarity: ExpertSimilarity, names: Sequence[str]) -> dict[str, Any]:
    sides = {
        side: {
            key: None if values is None else dict(zip(names, _lists(values), strict=True))
            for key, values in one._asdict().items()
        }
        for side, one in similarity.sides.items()
    }
    return {'compared': similarity.label, 'pairs': similarity.num_pairs, **sides}


def _lists(values: np.ndarray) -> list[list[float | None]]:
    """Return nested lists with None in place of nan, which JSON does not have."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
