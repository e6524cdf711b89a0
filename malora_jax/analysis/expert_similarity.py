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
    cca_similarity,
    distinct_pairs,
    independent_similarity,
    subspaces,
)

SIDES = ('A', 'B')


class SideSimilarity(NamedTuple):
    """Similarities of the experts' down-projections (A) or up-projections (B).

    Each similarity is a mean over the compared pairs of experts.

    Attributes:
        trained: (J, L) similarities after training; nan for B in layers where B is still zero.
        start: (J, L) similarities of the same pairs before training. None for B, which starts at
            zero, and for A if the initial weights are unknown.
        independent: (J, L) similarities that are expected of independent random subspaces.
    """

    trained: np.ndarray
    start: np.ndarray | None
    independent: np.ndarray


class ExpertSimilarity(NamedTuple):
    """Similarity of the experts' projections in one comparison.

    Attributes:
        label: Label for legends.
        pairs: Number of compared pairs of experts for each linear module and layer, by the keys of
            `sides`. D²MoRA has different numbers of A and B.
        sides: Similarities of the down-projections under the key 'A', and of the up-projections
            under the key 'B'. A comparison within a run has no key for a projection that all
            experts share.
    """

    label: str
    pairs: dict[str, int]
    sides: dict[str, SideSimilarity]

    @property
    def num_pairs(self) -> int:
        """Largest number of compared pairs of experts, of either side."""
        return max(self.pairs.values())


class RunPairs(NamedTuple):
    """Pairs of runs whose experts are compared in one comparison.

    Attributes:
        label: Label for legends.
        pairs: Pairs of indices of runs. A pair of a run with itself compares the run's experts with
            each other.
    """

    label: str
    pairs: Sequence[tuple[int, int]]


class ComparedRun(NamedTuple):
    """Properties of a run that decide which comparisons it takes part in.

    Attributes:
        name: Name of the run.
        method_and_rank: Name of the method and its rank, which compared runs must share.
        tasks: Names of the tasks that the run was trained on.
        num_experts: Number of experts per linear module.
    """

    name: str
    method_and_rank: str
    tasks: frozenset[str]
    num_experts: int


def comparable_pairs(runs: Sequence[ComparedRun]) -> list[RunPairs]:
    """Return the comparisons of the paper that these runs allow.

    There are three kinds of comparisons:

    1. The experts within one run.
    2. Runs of the same method and rank on the same tasks. The paper calls them ST(S) and compares
       runs with different seeds.
    3. Runs of the same method and rank on different tasks. The paper calls them ST(D).

    A single-task run is not compared with a multi-task run.

    Args:
        runs: Properties of each run. The pairs in the result are indices into this sequence.
    """
    found = [
        RunPairs(f'experts within {run.name}', [(i, i)])
        for i, run in enumerate(runs)
        if run.num_experts > 1
    ]
    across: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(runs), 2):
        if one.method_and_rank != other.method_and_rank or (len(one.tasks) == 1) != (
            len(other.tasks) == 1
        ):
            continue
        kind = 'the same tasks' if one.tasks == other.tasks else 'different tasks'
        across.setdefault((one.method_and_rank, kind), []).append((i, j))
    for (method, kind), pairs in across.items():
        found.append(RunPairs(f'{method} runs of {kind}', pairs))
    return found


# For each run: the projections of one linear module by side, trained and initial (None if the
# initial ones are unknown).
RunProjections = Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None]]


def expert_similarities(
    run_pairs: Sequence[RunPairs], projections: Iterable[RunProjections]
) -> list[ExpertSimilarity]:
    """Return the similarities of each comparison that has pairs to compare.

    Within a run, a projection that all experts share is skipped.

    Args:
        run_pairs: Comparisons to make, at least one.
        projections: Projections of all runs, for each of the J linear modules.
    """
    rows: dict[int, dict[str, list[SideSimilarity]]] = {
        number: {} for number in range(len(run_pairs))
    }
    counts: dict[int, dict[str, int]] = {}
    for runs in projections:
        for side in SIDES:
            trained = [subspaces(own[side]) for own, _ in runs]
            start = _initial_subspaces(runs, side)
            for number, (_, pairs) in enumerate(run_pairs):
                values = _pair_values(cca_similarity, trained, pairs)
                if not values.shape[1]:
                    continue
                counts.setdefault(number, {})[side] = values.shape[1]
                before = None
                if all(i in start and j in start for i, j in pairs):
                    before = nan_mean(_pair_values(cca_similarity, start, pairs), axis=1)
                expected = nan_mean(_pair_values(independent_similarity, trained, pairs), axis=1)
                one = SideSimilarity(nan_mean(values, axis=1), before, expected)
                rows[number].setdefault(side, []).append(one)
    return [
        ExpertSimilarity(
            run_pairs[number].label,
            pairs,
            {side: _stacked(each) for side, each in rows[number].items()},
        )
        for number, pairs in counts.items()
    ]


def nan_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the mean along an axis, ignoring nan; nan where all values are nan."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _initial_subspaces(runs: RunProjections, side: str) -> dict[int, Subspaces]:
    """Return the column spaces of a projection before training, by index of the run.

    Runs whose initial weights are unknown are omitted. The result is empty for B, because B starts
    at zero.

    Args:
        runs: Trained and initial projections of each run.
        side: Projection to use: 'A' (down-projection) or 'B' (up-projection).
    """
    if side == 'B':
        return {}
    return {i: subspaces(start[side]) for i, (_, start) in enumerate(runs) if start is not None}


def _stacked(linears: Sequence[SideSimilarity]) -> SideSimilarity:
    trained, start, expected = zip(*linears, strict=True)
    known = None if any(each is None for each in start) else np.stack(start)
    return SideSimilarity(np.stack(trained), known, np.stack(expected))


def _pair_values(
    function: Callable[[Subspaces, Subspaces], np.ndarray],
    runs: Sequence[Subspaces] | Mapping[int, Subspaces],
    pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Apply a function to all P pairs of experts in all pairs of runs.

    Args:
        function: Function of two `Subspaces` with E and G experts; returns (L, E, G) values.
        runs: Subspaces of each run, by run index.
        pairs: Pairs of run indices.

    Returns:
        (L, P) values. Within one run, each pair of distinct experts occurs once.
    """
    values_by_pair = []
    for i, j in pairs:
        values_LEG = function(runs[i], runs[j])
        own = distinct_pairs(values_LEG) if i == j else values_LEG.reshape(len(values_LEG), -1)
        values_by_pair.append(own)
    return np.concatenate(values_by_pair, axis=1)
