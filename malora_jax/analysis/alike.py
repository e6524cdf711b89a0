"""Figure 2: how alike the projections of experts are, within a run and across runs.

Dimension letters: J linears, L layers, E and G experts.
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
    """Similarities of A or of B, each the mean over the pairs that were compared.

    Attributes:
        trained: (J, L); nan where an expert's update is still zero.
        start: (J, L), of the same pairs before training; None if that is not known, or all zero.
        independent: (J, L), of subspaces that have nothing to do with each other.
    """

    trained: np.ndarray
    start: np.ndarray | None
    independent: np.ndarray


class Alike(NamedTuple):
    """Similarity of the projections in one comparison.

    Attributes:
        label: for legends.
        pairs: Number of pairs for each linear and layer, by side.
        sides: by name; 'A' is missing where the experts share one.
    """

    label: str
    pairs: int
    sides: dict[str, Side]


class Comparison(NamedTuple):
    """A comparison to make.

    Attributes:
        label: for legends.
        pairs: numbers of runs; of a run with itself, its experts are compared with each other.
    """

    label: str
    pairs: Sequence[tuple[int, int]]


class Candidate(NamedTuple):
    """A run, by the properties that decide what it is compared with.

    Attributes:
        name: of the run.
        method: its method, with whatever else must be the same.
        tasks: that it was trained on.
        experts: how many each linear has.
    """

    name: str
    method: str
    tasks: frozenset[str]
    experts: int


def comparisons(runs: Sequence[Candidate]) -> list[Comparison]:
    """The paper's three settings, as far as there are runs for them.

    Experts within a run with several; runs of one method and the same tasks (ST(S) in the paper,
    where they differ in their seeds); and of one method and different tasks (ST(D)). A run of one
    task is not compared with one of several.
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


# By run: the projections of a linear by side, trained and initial (None if these are not known).
Projections = Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None]]


def measure(wanted: Sequence[Comparison], linears: Iterable[Projections]) -> list[Alike]:
    """Compares; what the experts of a run have in common is left out.

    Args:
        wanted: at least one.
        linears: Projections of all runs, for each of the J linears.
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
    """Over what is known; nan where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _starts(runs: Projections, side: str) -> dict[int, Subspaces]:
    """Return initial subspaces by run, as far as known; B starts at zero and has none."""
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
    """(L, all pairs of experts of all pairs of runs)."""
    found = []
    for i, j in pairs:
        values_LEG = function(runs[i], runs[j])
        own = distinct_pairs(values_LEG) if i == j else values_LEG.reshape(len(values_LEG), -1)
        found.append(own)
    return np.concatenate(found, axis=1)
