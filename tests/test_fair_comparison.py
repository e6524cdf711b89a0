"""Tables of the fair comparison: made here from made-up records, with known losses."""

import pytest
from ml_collections import ConfigDict

from configs import fair_comparison
from docs import tables_fair
from malora_jax.runs.records import write_record
from malora_jax.sweeps import expand
from tests.helpers.finished_runs import QUESTIONS, write_finished_run
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def archive(tmp_path, monkeypatch):
    """Make the archive empty."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tables_fair, 'RESULTS', tmp_path / 'results')
    forget()
    yield tmp_path
    forget()


def forget():
    """Forget the content of the archive."""
    for cached in (tables_fair._restored, tables_fair.recorded_runs, tables_fair.groups):
        cached.cache_clear()


def record(home, study, losses, validation=None):
    """Record runs of a study: each by name, with its loss; questions depend on the seed."""
    runs = expand(tables_fair.STUDIES[study].get_config().to_dict())
    for name, loss in losses.items():
        config = ConfigDict(runs[name].config)
        config.evaluation.tasks = config.data.tasks
        nats = {
            task: [2 * loss + (q % 7) / 100 for q in range(QUESTIONS)] for task in config.data.tasks
        }
        write_finished_run(
            home / study / name,
            config,
            20,
            seed=runs[name].seed,
            nats=nats,
            question_format=f'{runs[name].seed} {{}}',
            validation={3: (validation or {}).get(name, loss)},
        )
        write_record(home / study / name, tables_fair.RESULTS / study / f'{name}.tar.xz')


def cells(table):
    """Return the cells of a Markdown table by its first column."""
    rows = [[cell.strip() for cell in line[1:-1].split('|')] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if not row[0].startswith('---')}


def test_the_best_rate_is_chosen_if_it_is_no_edge(archive):
    losses = {
        **{
            f'lora-learning_rate{rate}-seed0': loss
            for rate, loss in zip((0.001, 0.002, 0.004), (3, 1, 2), strict=True)
        },
        **{
            f'molora-learning_rate{rate}-seed0': loss
            for rate, loss in zip((0.001, 0.002, 0.004), (3, 2, 1), strict=True)
        },
    }
    record(archive, 'fair_rates', losses)
    assert tables_fair.chosen_rates('fair_rates') == {'lora': 0.002}
    table = cells(tables_fair.rates_table('fair_rates'))
    assert table['`lora`'] == ['3.000', '**1.000**', '2.000']
    assert table['`molora`'] == ['3.000', '2.000', '**1.000**']


def test_verdicts(archive):
    losses = {
        f'{method}-seed{seed}': loss + seed / 100
        for method, loss in (
            ('lora', 1.0),
            ('molora', 1.2),
            ('malora', 0.9),
            ('malora_unshared', 0.8),
        )
        for seed in (0, 1, 2)
    }
    record(archive, 'fair_methods', losses)
    table = cells(tables_fair.hypotheses())
    assert table['1. MALoRA beats MoLoRA'] == ['-0.300 [-0.300, -0.300]', 'supported']
    assert table['3. Sharing S_A helps'] == ['+0.100 [+0.100, +0.100]', 'contradicted']
    assert table['4. Two experts beat one, MoLoRA'][1] == 'not yet tested'
    rows = cells(tables_fair.PARTS['fair methods']())
    assert [*rows] == ['row', '`malora`', '`lora`', '`molora`']  # The lowest loss first.
    # 1.2 and 0.00, 0.01 or 0.02 by seed, and 0.0144, the mean of (q % 7) / 200 over questions.
    assert rows['`molora`'][3:6] == ['1.224 [1.200, 1.249]', '+0.200 [+0.200, +0.200]', '–']
    by_task = cells(tables_fair.tasks_table())['`malora`']
    assert by_task == ['-0.100 [-0.100, -0.100]'] * 6


def test_experts_by_task_are_one_row_of_six_runs(archive):
    tasks = fair_comparison.get_config().data.tasks
    losses = {f'by_task-{task}-seed0': 0.5 for task in tasks} | {'lora-seed0': 1.0}
    record(archive, 'fair_methods', losses)
    row = cells(tables_fair.PARTS['fair controls']())['`by_task`']
    assert row[0] == f'{6 * 1234567:,}' and row[4].startswith('-0.500')


def test_the_growth_with_the_number_of_tasks(archive):
    counts = {2: 0.1, 4: 0.0, 8: -0.1, 12: -0.2}
    losses = {}
    for count, change in counts.items():
        losses |= {f'lora-{count}-seed0': 1.0, f'molora-{count}-seed0': 1.0 + change}
    record(archive, 'fair_task_counts', losses)
    table = cells(tables_fair.task_counts_table())
    assert [row[1].split()[0] for row in [*table.values()][1:]] == [
        *('+0.100', '+0.000', '-0.100', '-0.200')
    ]
    last = [*cells(tables_fair.hypotheses()).values()][-1]
    assert last == ['-0.300 [-0.300, -0.300] (MoLoRA)', 'supported']


def test_an_empty_archive_says_so():
    for name in ('fair methods', 'fair rates', 'fair task counts', 'fair real tasks'):
        assert tables_fair.PARTS[name]() == tables_fair.NO_RUNS
