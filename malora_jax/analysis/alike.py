"""Similarity of the experts' projections, within a run and across runs (Figure 2 of the paper).

A and B are the sides of an adapter: A is the down-projection, B the up-projection.

Dimension letters: J linear modules, L layers, E and G experts.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.analysis.similarity import (
    Subspaces,
    distinct_pairs,
    independent,
    similarity,
    subspaces,
)

SIDES = ('A', 'B')


class Side(NamedTuple):
    """Similarities of A or of B, each averaged over the compared pairs.

    Attributes:
        trained: (J, L) similarities after training; nan where an expert's update is still zero.
        start: (J, L) similarities of the same pairs before training; None if they are not known or
            the weights start at zero.
        independent: (J, L) expected similarities of independent random subspaces.
    """

    trained: np.ndarray
    start: np.ndarray | None
    independent: np.ndarray


class Alike(NamedTuple):
    """Similarity of the projections in one comparison.

    Attributes:
        label: Label for legends.
        pairs: Number of compared pairs for each linear module and layer.
        sides: Similarities by side, 'A' and 'B'; 'A' is missing if all experts share one A.
    """

    label: str
    pairs: int
    sides: dict[str, Side]


class Comparison(NamedTuple):
    """A comparison to make.

    Attributes:
        label: Label for legends.
        pairs: Pairs of run indices. A pair of a run with itself compares its experts with each
            other.
    """

    label: str
    pairs: Sequence[tuple[int, int]]


class Candidate(NamedTuple):
    """Properties of a run that decide which comparisons it takes part in.

    Attributes:
        name: Name of the run.
        method: Name of the method, with everything else that compared runs must share.
        tasks: Names of the tasks that the run was trained on.
        experts: Number of experts per linear module.
    """

    name: str
    method: str
    tasks: frozenset[str]
    experts: int


def comparisons(runs: Sequence[Candidate]) -> list[Comparison]:
    """Return the paper's three kinds of comparisons, as far as the runs allow them.

    They are: experts within a run that has several; runs of one method on the same tasks (ST(S) in
    the paper, where they differ in their seeds); and runs of one method on different tasks (ST(D)).
    A single-task run is not compared with a multi-task run.
    """
    found = [
        Comparison(f'experts within {run.name}', [(i, i)])
        for i, run in enumerate(runs)
        if run.experts > 1
    ]
    across: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(runs), 2):
        if one.method != other.method or (len(one.tasks) == 1) != (len(other.tasks) == 1):
            continue
        kind = 'the same tasks' if one.tasks == other.tasks else 'different tasks'
        across.setdefault((one.method, kind), []).append((i, j))
    for (method, kind), pairs in across.items():
        found.append(Comparison(f'{method} runs of {kind}', pairs))
    return found


# For each run: the projections of one linear module by side, trained and initial (None if the
# initial ones are not known).
Projections = Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None]]


def measure(wanted: Sequence[Comparison], linears: Iterable[Projections]) -> list[Alike]:
    """Return the similarities of each comparison that has pairs to compare.

    Projections that all experts of a run share are left out.

    Args:
        wanted: Comparisons to make, at least one.
        linears: Projections of all runs, for each of the J linear modules.
    """
    rows: dict[int, dict[str, list[Side]]] = {number: {} for number in range(len(wanted))}
    counts: dict[int, int] = {}
    for runs in linears:
        for side in SIDES:
            trained = [subspaces(own[side]) for own, _ in runs]
            start = _starts(runs, side)
            for number, (_, pairs) in enumerate(wanted):
                values = _pairs(similarity, trained, pairs)
                if not values.shape[1]:
                    continue
                counts[number] = values.shape[1]
                before = None
                if all(i in start and j in start for i, j in pairs):
                    before = mean(_pairs(similarity, start, pairs), axis=1)
                expected = mean(_pairs(independent, trained, pairs), axis=1)
                one = Side(mean(values, axis=1), before, expected)
                rows[number].setdefault(side, []).append(one)
    return [
        Alike(
            wanted[number].label,
            pairs,
            {side: _stacked(each) for side, each in rows[number].items()},
        )
        for number, pairs in counts.items()
    ]


def mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the mean along an axis, ignoring nan; nan where all values are nan."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _starts(runs: Projections, side: str) -> dict[int, Subspaces]:
    """Return the initial subspaces of A by run, where known; B starts at zero and has none."""
    if side == 'B':
        return {}
    return {i: subspaces(start[side]) for i, (_, start) in enumerate(runs) if start is not None}


def _stacked(linears: Sequence[Side]) -> Side:
    trained, start, expected = zip(*linears, strict=True)
    known = None if any(each is None for each in start) else np.stack(start)
    return Side(np.stack(trained), known, np.stack(expected))


def _pairs(
    function: Callable[[Subspaces, Subspaces], np.ndarray],
    runs: Sequence[Subspaces] | Mapping[int, Subspaces],
    pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Return an (L, P) array of a function of all P pairs of experts in all pairs of runs."""
    found = []
    for i, j in pairs:
        values_LEG = function(runs[i], runs[j])
        own = distinct_pairs(values_LEG) if i == j else values_LEG.reshape(len(values_LEG), -1)
        found.append(own)
    return np.concatenate(found, axis=1)
