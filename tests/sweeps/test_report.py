"""Reports on sweeps whose runs are made by hand."""

import csv
import math

import pytest
from matplotlib.figure import Figure

from malora_jax.errors import UserError
from malora_jax.statistics import seed_interval
from malora_jax.sweeps import expand
from malora_jax.sweeps.config import sweep_config
from malora_jax.sweeps.report import write_report
from tests.sweeps.helpers import ROOT, make_results, small_sweep_config, write_run

# Score and loss by learning rate and seed. The first rate's seeds are ten points apart.
FOUND = {
    (0.001, 0): (0.50, 1.0),
    (0.001, 1): (0.60, 1.2),
    (0.01, 0): (0.80, 0.5),
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def drawn(monkeypatch):
    """Saved figures, by file name."""
    figures = {}
    save = Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        figures[path.stem.removesuffix('.tmp').removeprefix('.')] = figure

    monkeypatch.setattr(Figure, 'savefig', keep)
    return figures


def report(workdir, made, errors=None):
    runs = expand(made)
    text = write_report(workdir, sweep_config(made), runs, errors or {})
    with (workdir / 'runs.csv').open() as file:
        return text, {row['run']: row for row in csv.DictReader(file)}


@pytest.fixture
def reported(tmp_path, drawn):
    """Report on a sweep with three finished runs and a failed one, and its figures."""
    for (rate, seed), (score, loss) in FOUND.items():
        write_run(tmp_path, f'malora-learning_rate{rate:g}-seed{seed}', make_results(score, loss))
    failed = 'malora-learning_rate0.01-seed1'
    return *report(tmp_path, small_sweep_config(), {failed: 'The loss is nan at step 3.'}), drawn


def test_a_row_of_the_csv_for_each_run(reported):
    _, rows, _ = reported
    assert len(rows) == 4
    row = rows['malora-learning_rate0.001-seed1']
    assert (row['state'], row['seed'], row['optimizer.learning_rate']) == ('finished', '1', '0.001')
    assert float(row['score']) == 0.6
    assert float(row['loss']) == pytest.approx(1.2)
    assert float(row['score/chain_sum']) == pytest.approx(0.7)
    assert float(row['loss/needle_haystack']) == pytest.approx(1.3)
    assert row['config.adapter.shared_rank'] == '32'
    failed = rows['malora-learning_rate0.01-seed1']
    assert (failed['state'], failed['error']) == ('failed', 'The loss is nan at step 3.')
    assert failed['score'] == ''


def test_means_over_seeds_with_their_intervals(reported):
    text, _, _ = reported
    assert '3 of 4 runs are finished.' in text
    # For two seeds, Student's t is 12.706 standard errors; the standard error of 50 and 60 is 5.
    low, high = 55 - 12.706 * 5, 55 + 12.706 * 5
    (line,) = [
        line for line in text.splitlines() if line.startswith('| malora-learning_rate0.001 | 0.001')
    ]
    assert f'| 0, 1 | 55.0 [{low:.1f}, {high:.1f}] |' in line
    low, high = 1.1 - 12.706 * 0.1, 1.1 + 12.706 * 0.1
    assert line.endswith(f'| 1.100 [{low:.3f}, {high:.3f}] |')
    assert '| malora-learning_rate0.01 | 0.01 | 1,234 | 0 | 80.0 | 0.500 |' in text
    assert 'The lowest loss is that of malora-learning_rate0.01.' in text
    assert '| malora-learning_rate0.01 | 90.0 | 70.0 |' in text
    assert '- malora-learning_rate0.01-seed1: The loss is nan at step 3.' in text


def test_the_plot_has_a_panel_for_each_metric(reported):
    _, _, drawn = reported
    score, loss = drawn['learning_rate'].axes
    assert score.get_ylabel() == 'score (%)' and loss.get_ylabel().startswith('answer loss')
    x, y = score.containers[0].lines[0].get_data()
    assert list(x) == [0.001, 0.01]
    assert list(y) == pytest.approx([55, 80])
    assert list(loss.containers[0].lines[0].get_data()[1]) == pytest.approx([1.1, 0.5])


def test_one_line_for_each_run_where_values_go_together(tmp_path, drawn):
    """Values that change together, as rank and β in Table 11, share a curve; x is r, not r̄."""
    runs = {'molora': {'arg': 'molora'}, 'malora': {'arg': 'malora'}}
    made = small_sweep_config(
        runs=runs, seeds=(0,), subspace_share=0.5, report={'metrics': ('score',)}
    )
    del made['grid']
    made['zip'] = {'adapter': {'rank': (4, 8), 'beta': (0.3, 1.0)}}
    for name in expand(made):
        write_run(tmp_path, name, make_results(0.5, 1.0))
    report(tmp_path, made)
    (axes,) = drawn['rank'].axes
    lines = {line.get_label(): list(line.lines[0].get_xdata()) for line in axes.containers}
    assert lines == {'molora': [4, 8], 'malora': [4, 8]}
    assert drawn.keys() == {'rank', 'beta'}


def test_the_paper_s_numbers_stand_beside_runs_of_its_tasks(tmp_path, drawn):
    from configs import inter_domain

    tasks = inter_domain.get_config('malora').to_dict()['evaluation']['tasks']
    made = small_sweep_config(
        base=str(ROOT / 'configs' / 'inter_domain.py'),
        grid={'adapter': {'rank': (8, 16)}},
        seeds=(0,),
        subspace_share=0.5,
        report={'table': 'table11'},
    )
    write_run(tmp_path, 'malora-rank8-seed0', make_results(0.5, 1.0, tasks))
    write_run(tmp_path, 'malora-rank16-seed0', make_results(0.6, 1.0, tasks))
    text, _ = report(tmp_path, made)
    assert '| *in the paper* |' in text
    # In the paper, β of r = 16 is 3.5, but here it is 1.
    (eight, sixteen) = [line for line in text.splitlines() if line.startswith('| malora-rank')][:2]
    assert eight.endswith('| 50.0 | 1.000 | *56.27* |')
    assert sixteen.endswith('| 60.0 | 1.000 | – |')
    dashed = {line.get_label(): line for line in drawn['rank'].axes[0].lines}
    assert list(dashed['malora, in the paper'].get_ydata()) == [56.27]


def test_no_numbers_of_the_paper_beside_other_tasks(tmp_path):
    made = small_sweep_config(report={'table': 'table11'})
    write_run(tmp_path, 'malora-learning_rate0.001-seed0', make_results(0.5, 1.0))
    text, _ = report(tmp_path, made)
    assert '*in the paper*' not in text
    assert 'so its numbers are not comparable' in text
    assert '## Not finished' in text


def test_without_a_finished_run_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match=r'No run of the sweep in .* is finished'):
        report(tmp_path, small_sweep_config())


def test_an_interval_over_seeds():
    """Five numbers by hand: t = 2.776 with four degrees of freedom."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    low, high = seed_interval(values)
    assert low == pytest.approx(3 - half, rel=1e-5)
    assert high == pytest.approx(3 + half, rel=1e-5)
    assert seed_interval([1.0]) is None
