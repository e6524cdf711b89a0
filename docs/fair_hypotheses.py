"""Hypotheses of the fair comparison: differences of losses by seed, their intervals and verdicts.

docs/comparison_protocol.md states the hypotheses. Both intervals are shown: the hierarchical
bootstrap over seeds and questions, on which the verdicts are based, and Student's interval over
seeds, which is wider if there are few.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from configs.sweeps import fair_task_counts
from docs.fair_number_of_tasks import MIXTURES
from docs.tables_fair import MIN_SEEDS, NO_RUNS, differences_by_seed, groups, planned_runs
from malora_jax import markdown
from malora_jax.analysis import cells
from malora_jax.analysis.page import NO_VALUE
from malora_jax.statistics import hierarchical_bootstrap, seed_interval, student_half_width

# Half-width of an interval over seeds that would decide the differences seen so far.
_HALF_WIDTH = 0.01
# Differences of the losses by seed and task, one for each question.
_Gains = Mapping[int, Mapping[str, np.ndarray]]


class Hypothesis(NamedTuple):
    """A hypothesis on the losses of two rows of study A.

    Attributes:
        text: Text of the hypothesis.
        row: Row whose loss is lower according to the hypothesis.
        reference: Row that it is compared with.
        margin: Largest difference that still supports the hypothesis, in nats per answer token.
    """

    text: str
    row: str
    reference: str
    margin: float = 0.0

    @property
    def operands(self) -> str:
        """The rows whose losses are subtracted, for tables."""
        return f'`{self.row}` − `{self.reference}`'


HYPOTHESES = (
    Hypothesis('1. MALoRA beats MoLoRA', 'malora', 'molora'),
    Hypothesis('1. MALoRA beats LoRA', 'malora', 'lora'),
    Hypothesis(
        '1. MALoRA-Small is at most 0.01 worse than MoLoRA', 'malora_small', 'molora', margin=0.01
    ),
    Hypothesis('3. Sharing S_A helps', 'malora', 'malora_unshared'),
    Hypothesis('4. Two experts beat one, MoLoRA', 'molora', 'molora_top1'),
    Hypothesis('4. Two experts beat one, MALoRA', 'malora', 'malora_top1'),
)


def hypotheses() -> str:
    """Return the table of the hypotheses with their verdicts."""
    head = ('hypothesis', 'difference, bootstrap', 'interval over seeds', 'of each seed', 'verdict')
    rows = [head]
    for text, row, reference, margin in HYPOTHESES:
        planned = min(_planned_seeds('fair_methods', name) for name in (row, reference))
        rows.append(
            (text, *_result(differences_by_seed('fair_methods', row, reference), planned, margin))
        )
    for method, label in MIXTURES.items():
        text = f'2. The advantage of {label} grows with the number of tasks (change per 10 tasks)'
        planned = _planned_seeds('fair_task_counts', f'{method}-{max(fair_task_counts.COUNTS)}')
        rows.append((text, *_result(_slope_gains(method), planned)))
    return markdown.table(rows)


def operands() -> str:
    """Return the rows whose losses the hypotheses on study A subtract, in their order."""
    return ', '.join(each.operands for each in HYPOTHESES) + '.'


def scores_table() -> str:
    """Return the table of the differences of the exact match, for the hypotheses on study A."""
    rows = [('difference', 'exact match, percentage points', 'of each seed')]
    for each in HYPOTHESES:
        gains = differences_by_seed('fair_methods', each.row, each.reference, metric='score')
        if gains:
            change = hierarchical_bootstrap([*gains.values()])
            by_seed = ', '.join(f'{100 * mean:+.1f}' for mean in _means(gains).values())
            rows.append((each.operands, cells.score_difference(change), by_seed))
    return markdown.table(rows) if len(rows) > 1 else NO_RUNS


def precision_table() -> str:
    """Return the table of how precise the differences of the hypotheses on study A are.

    Differences with fewer than `MIN_SEEDS` seeds are left out.
    """
    head = ('difference', 'seeds', 'standard deviation over seeds', 'half-width with 5 seeds')
    rows = [(*head, f'seeds for {_HALF_WIDTH:g}')]
    for each in HYPOTHESES:
        means = [*_means(differences_by_seed('fair_methods', each.row, each.reference)).values()]
        if len(means) >= MIN_SEEDS:
            deviation = statistics.stdev(means)
            enough = next(
                count
                for count in itertools.count(2)
                if student_half_width(deviation, count) <= _HALF_WIDTH
            )
            five = student_half_width(deviation, 5)
            texts = (f'{len(means)}', f'{deviation:.3f}', f'{five:.3f}', f'{enough}')
            rows.append((each.operands, *texts))
    return markdown.table(rows) if len(rows) > 1 else NO_RUNS


def seeds_table() -> str:
    """Return the table of the differences from LoRA in study A, by seed."""
    known = groups('fair_methods')
    if 'lora' not in known:
        return NO_RUNS
    seeds = known['lora'].by_seed('loss')
    rows = [('row', *(f'seed {seed}' for seed in seeds), 'mean, interval over seeds')]
    for name in known:
        means = _means(differences_by_seed('fair_methods', name, 'lora'))
        if means and name != 'lora':
            texts = (f'{means[seed]:+.3f}' if seed in means else '' for seed in seeds)
            rows.append((f'`{name}`', *texts, _mean_over_seeds([*means.values()])))
    return markdown.table(rows)


def _planned_seeds(study: str, row: str) -> int:
    return sum(run.variant == row for run in planned_runs(study).values())


def _slope_gains(method: str) -> _Gains:
    """Return differences from LoRA in study B whose mean is their slope, per 10 tasks.

    The least-squares slope of the differences D_N of N tasks is Σ_N w_N D_N, where w_N is N minus
    the mean of N, divided by the sum of the squares of these. A question of a task is in each D_N
    with this task, so its part of the slope is a weighted sum of differences. D_N is the mean over
    N tasks, and the slope is returned as a mean over all tasks; hence the ratio of both numbers.
    """
    counts = np.array(fair_task_counts.COUNTS)
    centered = counts - counts.mean()
    weights = 10 * centered / (centered**2).sum()
    gains = {
        n: differences_by_seed('fair_task_counts', f'{method}-{n}', f'lora-{n}') for n in counts
    }
    tasks = fair_task_counts.TASKS[: max(counts)]

    def slope(seed: int, task: str) -> np.ndarray:
        terms = (
            weight * len(tasks) / n * gains[n][seed][task]
            for n, weight in zip(counts, weights, strict=True)
            if task in gains[n][seed]
        )
        return np.sum([*terms], axis=0)

    seeds = set.intersection(*map(set, gains.values()))
    return {seed: {task: slope(seed, task) for task in tasks} for seed in sorted(seeds)}


def _result(gains: _Gains, planned: int, margin: float = 0.0) -> tuple[str, str, str, str]:
    """Return the cells of a hypothesis that the difference is below a margin.

    Args:
        gains: Differences.
        planned: Number of seeds according to the protocol.
        margin: Largest difference that still supports the hypothesis.
    """
    if not gains:
        return NO_VALUE, NO_VALUE, NO_VALUE, 'not yet tested'
    change = hierarchical_bootstrap([*gains.values()])
    means = [*_means(gains).values()]
    verdict = 'supported' if change.mean < margin else 'contradicted'
    if change.interval.low <= margin <= change.interval.high:
        verdict = 'undecided'
    if len(means) < MIN_SEEDS:
        verdict = f'too early, {len(means)} of {planned} seeds'
    elif len(means) < planned:
        verdict += f' so far, {len(means)} of {planned} seeds'
    each = ', '.join(f'{mean:+.3f}' for mean in means)
    return cells.nats(change), _mean_over_seeds(means), each, verdict


def _means(gains: _Gains) -> dict[int, float]:
    """Return the mean over tasks of the mean difference, by seed."""
    return {
        seed: float(np.mean([gains_Q.mean() for gains_Q in of_tasks.values()]))
        for seed, of_tasks in gains.items()
    }


def _mean_over_seeds(means: Sequence[float]) -> str:
    """Return the mean of differences with Student's interval, which one seed does not have."""
    return cells.signed_loss(float(np.mean(means)), seed_interval(means))


PARTS: dict[str, Callable[[], str]] = {
    'fair operands': operands,
    'fair precision': precision_table,
    'fair hypotheses': hypotheses,
    'fair scores': scores_table,
    'fair seeds': seeds_table,
}
