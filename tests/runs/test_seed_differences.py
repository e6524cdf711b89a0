"""Differences that are paired by seed, of runs whose questions differ between seeds."""

import numpy as np
import pytest

from configs import intra_domain_small
from malora_jax.runs import SeedGroup, read_runs
from malora_jax.statistics import hierarchical_bootstrap
from tests.helpers.finished_runs import write_finished_run

TASKS = ('piqa', 'boolq')


def group(directory, name, seeds, *, tasks=TASKS, loss=1.0, question='seed {} asks'):
    """Write and load runs whose loss depends on the seed, the task and the question."""
    for seed in seeds:
        config = intra_domain_small.get_config('lora')
        config.data.tasks = config.evaluation.tasks = tasks
        nats = {
            task: [loss + 0.1 * seed + TASKS.index(task) + q / 100 for q in range(40)]
            for task in tasks
        }
        write_finished_run(
            directory / f'{name}-seed{seed}',
            config,
            20 + seed,
            seed=seed,
            nats=nats,
            question_format=f'{question.format(seed)} {{}}',
        )
    runs = read_runs([directory / f'{name}-seed{seed}' for seed in seeds])
    return SeedGroup(name, tasks, runs)


def test_runs_are_paired_by_seed(tmp_path):
    """The right answers have 2 tokens on average, so a difference of 1 nat is 0.5 per token."""
    one = group(tmp_path, 'one', (0, 1, 2), loss=2.0)
    other = group(tmp_path, 'other', (2, 1), loss=1.0)
    assert one.average_difference(other, 'loss') is None  # The questions of the seeds differ.
    found = one.difference_over_seeds(other, 'loss')
    assert found.mean == pytest.approx(0.5) and found.interval == pytest.approx((0.5, 0.5))
    # The same seed answers the same number of questions.
    assert one.difference_over_seeds(other).mean == 0


def test_the_interval_is_that_of_the_hierarchical_bootstrap(tmp_path):
    one = group(tmp_path, 'one', (0, 1), loss=2.0)
    other = group(tmp_path, 'other', (0, 1), loss=1.0)
    gains = []
    for seed in (0, 1):
        mine, theirs = (next(run for run in g.runs if run.seed == seed) for g in (one, other))
        rows = [*zip(mine.answers_after, theirs.answers_after, strict=True)]
        gains.append(
            {
                task: np.array([(a['nats'] - b['nats']) / 2 for a, b in rows if a['task'] == task])
                for task in TASKS
            }
        )
    assert one.difference_over_seeds(other, 'loss') == hierarchical_bootstrap(gains)


def test_one_run_for_each_task(tmp_path):
    alone = [group(tmp_path, task, (0, 1), tasks=(task,), loss=2.0).runs for task in TASKS]
    row = SeedGroup('alone', TASKS, [run for runs in alone for run in runs])
    both = group(tmp_path, 'both', (0, 1), loss=1.0)
    assert row.difference_over_seeds(both, 'loss').mean == pytest.approx(0.5)
    assert both.difference_over_seeds(row, 'loss', ('boolq',)).mean == pytest.approx(-0.5)


def test_seeds_or_questions_that_do_not_match(tmp_path):
    one = group(tmp_path, 'one', (0, 1))
    assert one.difference_over_seeds(group(tmp_path, 'other', (2,)), 'loss') is None
    others = group(tmp_path, 'others', (0, 1), question='{} else')
    assert one.difference_over_seeds(others, 'loss') is None
