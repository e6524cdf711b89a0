"""Plots of scores and losses against a config field."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import intra_domain_small
from malora_jax.analysis.sections.fields import field_section
from malora_jax.runs import SeedGroup, read_runs
from tests.helpers.finished_runs import write_finished_run


@pytest.fixture
def figure(monkeypatch):
    """List of the figures that were saved."""
    found = []
    save = Figure.savefig

    def keep(figure, path, **options):
        found.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(Figure, 'savefig', keep)
    return found


def test_each_seed_is_a_point_next_to_the_mean(tmp_path, figure):
    points = []
    for rank, losses in ((4, (1.0, 2.0)), (8, (0.5, 0.75))):
        for seed, loss in enumerate(losses):
            path = tmp_path / f'{rank}' / f'seed{seed}'
            config = intra_domain_small.get_config('malora')
            write_finished_run(path, config, 20 + 10 * seed, seed=seed, loss=loss)
        runs = read_runs([tmp_path / f'{rank}'])
        points.append((rank, SeedGroup(f'rank{rank}', [*runs[0].results['tasks']], runs)))
    section = field_section('adapter.rank', {'malora': points}, ('score', 'loss'), tmp_path)
    score, loss = figure[0].axes
    for axes, expected in (
        (score, [[4, 50], [4, 75], [8, 50], [8, 75]]),
        # The losses of the five tasks are 0 to 4 above that of the first.
        (loss, [[4, 3.0], [4, 4.0], [8, 2.5], [8, 2.75]]),
    ):
        seeds = next(line for line in axes.lines if line.get_marker() == '.')
        np.testing.assert_allclose(seeds.get_xydata(), expected)
    conditions = 'smollm2-135m, seeds 0, 1, 200 held-out questions in 5 tasks, 95% intervals'
    assert figure[0].get_suptitle().replace('\n', ' ') == f'{conditions} over seeds'
    assert section.blocks[0].caption.endswith(
        'The highest score (%) is 62.5, at rank 4 of malora (2 seeds). The lowest answer loss '
        '(nats per token) is 2.62, at rank 8 of malora (2 seeds).'
    )
