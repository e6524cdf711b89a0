"""Tables of the fair comparison: made here from made-up records, with known losses."""

import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import fair_comparison
from configs.sweeps import fair_task_counts
from docs import (
    fair_hypotheses,
    fair_number_of_tasks,
    fair_repetitions,
    fair_why,
    pictures_fair,
    tables_fair,
)
from malora_jax.runs.records import write_record
from malora_jax.statistics import seed_interval
from tests.helpers.finished_runs import QUESTIONS, write_finished_run
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def archive(tmp_path, monkeypatch):
    """Make the archive empty."""
    monkeypatch.chdir(ROOT)
    for module in (tables_fair, fair_why):
        monkeypatch.setattr(module, 'RESULTS', tmp_path / 'results')
    forget()
    yield tmp_path
    forget()


def forget():
    """Forget the content of the archive."""
    for cached in (
        tables_fair._restored,
        tables_fair.recorded_runs,
        tables_fair.groups,
        tables_fair.loss_difference,
    ):
        cached.cache_clear()


def record(home, study, losses, validation=None, correct=None):
    """Record runs of a study: each by name, with its loss; questions depend on the seed.

    Of the 40 questions of each task, a run answers `correct[name]` correctly, or else 20.
    """
    runs = tables_fair.planned_runs(study)
    for name, loss in losses.items():
        config = ConfigDict(runs[name].config)
        config.evaluation.tasks = config.data.tasks
        nats = {
            task: [2 * loss + (q % 7) / 100 for q in range(QUESTIONS)] for task in config.data.tasks
        }
        write_finished_run(
            home / study / name,
            config,
            (correct or {}).get(name, 20),
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


def test_controls_are_screened_apart_from_their_method(archive):
    losses = {
        f'{row}-learning_rate{rate}-seed0': loss
        for row, best in (('molora', 0.002), ('molora_renormalized', 0.004))
        for rate, loss in ((rate, abs(rate - best)) for rate in (0.001, 0.002, 0.004))
    }
    record(archive, 'fair_rates', losses)
    assert tables_fair.chosen_rates('fair_rates') == {'molora': 0.002}
    assert [*cells(tables_fair.rates_table('fair_rates'))][1:] == [
        *('`molora`', '`molora_renormalized`')
    ]


def test_verdicts(archive):
    means = {'lora': 1.0, 'molora': 1.2, 'malora': 0.9, 'malora_unshared': 0.8}
    losses = {
        f'{row}-seed{seed}': loss + seed / 100
        for row, loss in means.items()
        for seed in range(3 if row == 'malora_unshared' else 5)
    }
    record(archive, 'fair_methods', losses)
    table = cells(fair_hypotheses.hypotheses())
    assert table['1. MALoRA beats MoLoRA'] == [
        *('-0.300 [-0.300, -0.300]', '-0.300 [-0.300, -0.300]'),
        *(', '.join(['-0.300'] * 5), 'supported'),
    ]
    assert table['3. Sharing S_A helps'] == [
        *('+0.100 [+0.100, +0.100]', '+0.100 [+0.100, +0.100]'),
        *(', '.join(['+0.100'] * 3), 'contradicted'),
    ]
    assert table['4. Two experts beat one, MoLoRA'][-1] == 'not yet tested'
    rows = cells(tables_fair.PARTS['fair methods']())
    assert [*rows] == ['row', '`malora`', '`lora`', '`molora`']  # The lowest loss first.
    # 1.2 and 0.00 to 0.04 by seed, and 0.0144, the mean of (q % 7) / 200 over questions.
    assert rows['`molora`'][3:6] == ['1.234 [1.215, 1.254]', '+0.200 [+0.200, +0.200]', '–']
    by_task = cells(tables_fair.tasks_table('fair_methods', ('malora',)))['`malora`']
    assert by_task == ['-0.100 [-0.100, -0.100]'] * 6


def test_the_operands_are_those_of_the_rows_on_study_a():
    operands = fair_hypotheses.operands().removesuffix('.').split(', ')
    assert operands[:2] == ['`malora` − `molora`', '`malora` − `lora`']
    rows = [*cells(fair_hypotheses.hypotheses())][1:]
    assert [row[0] for row in rows[: len(operands)]] == [*'111344']


def test_differences_of_each_seed(archive):
    changes = {'malora': (-0.1, 0.2, 0.5), 'malora_unshared': (-0.2,)}
    losses = {f'lora-seed{seed}': 1.0 + seed for seed in range(3)}
    losses |= {
        f'{row}-seed{seed}': 1.0 + seed + change
        for row, by_seed in changes.items()
        for seed, change in enumerate(by_seed)
    }
    record(archive, 'fair_methods', losses)
    table = cells(fair_hypotheses.seeds_table())
    assert [*table] == ['row', '`malora`', '`malora_unshared`']
    # Student's: 0.2 ± 4.303 · 0.3 / √3.
    assert table['`malora`'] == ['-0.100', '+0.200', '+0.500', '+0.200 [-0.545, +0.945]']
    assert table['`malora_unshared`'] == ['-0.200', '', '', '-0.200']
    ablations = cells(tables_fair.PARTS['fair ablations']())
    assert ablations['`malora_unshared`'][4] == '-0.100 [-0.100, -0.100], 1 seed'
    assert cells(tables_fair.PARTS['fair methods']())['`malora`'][4].endswith(', not significant')
    # 2.776 · 0.3 / √5; and (1.96 · 0.3 / 0.01)² = 3457, a little more with Student's distribution.
    precision = cells(fair_hypotheses.precision_table())['`malora` − `lora`']
    assert precision[:3] == ['3', '0.300', '0.372']
    assert 3457 < int(precision[3]) < 3463
    beats = cells(fair_hypotheses.hypotheses())['1. MALoRA beats LoRA']
    assert beats[1:] == [
        *('+0.200 [-0.545, +0.945]', '-0.100, +0.200, +0.500', 'undecided so far, 3 of 5 seeds')
    ]


def test_differences_of_the_exact_match(archive):
    correct = {f'malora-seed{seed}': count for seed, count in enumerate((24, 24, 18))}
    names = [f'{row}-seed{seed}' for row in ('lora', 'malora') for seed in range(3)]
    record(archive, 'fair_methods', dict.fromkeys(names, 1.0), correct=correct)
    table = cells(fair_hypotheses.scores_table())
    assert [*table] == ['difference', '`malora` − `lora`']
    change, by_seed = table['`malora` − `lora`']
    assert by_seed == '+10.0, +10.0, -5.0'
    # One of 27 resamples has the last seed only, whose difference is negative.
    assert change.startswith('+5.0 [-') and change.endswith(', not significant')


@pytest.mark.parametrize(
    'seeds, verdict',
    [
        (2, 'too early, 2 of 5 seeds'),
        (3, 'supported so far, 3 of 5 seeds'),
        (4, 'supported so far, 4 of 5 seeds'),
        (5, 'supported'),
    ],
)
def test_a_verdict_needs_three_seeds_and_is_final_with_all(archive, seeds, verdict):
    losses = {f'lora-seed{seed}': 1.0 for seed in range(seeds)}
    losses |= {f'malora-seed{seed}': 0.9 for seed in range(seeds)}
    record(archive, 'fair_methods', losses)
    assert cells(fair_hypotheses.hypotheses())['1. MALoRA beats LoRA'][-1] == verdict


@pytest.mark.parametrize('change, verdict', [(0.005, 'supported'), (0.015, 'contradicted')])
def test_a_small_method_may_be_worse_by_its_margin(archive, change, verdict):
    losses = {f'molora-seed{seed}': 1.0 for seed in range(3)}
    losses |= {f'malora_small-seed{seed}': 1.0 + change for seed in range(3)}
    record(archive, 'fair_methods', losses)
    table = cells(fair_hypotheses.hypotheses())
    assert table['1. MALoRA-Small is at most 0.01 worse than MoLoRA'][-1] == verdict


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
        for seed in (0, 1, 2):
            losses |= {f'lora-{count}-seed{seed}': 1.0, f'molora-{count}-seed{seed}': 1.0 + change}
    record(archive, 'fair_task_counts', losses)
    table = cells(fair_number_of_tasks.task_counts_table())
    assert [row[1].split()[0] for row in [*table.values()][1:]] == [
        *('+0.100', '+0.000', '-0.100', '-0.200')
    ]
    last = [*cells(fair_hypotheses.hypotheses()).values()][-1]
    slope = f'{10 * np.polyfit([*counts], [*counts.values()], 1)[0]:+.3f}'
    assert last == [*[f'{slope} [{slope}, {slope}]'] * 2, ', '.join([slope] * 3), 'supported']


def test_the_growth_is_the_slope_of_mean_differences_over_tasks_and_seeds(archive):
    """The differences are random, so that the weight of each number of tasks matters."""
    rng = np.random.default_rng(0)
    losses, means = {}, []
    for seed in (0, 1, 2):
        by_count = rng.normal(size=4).round(2)  # Records have few digits.
        for count, change in zip(fair_task_counts.COUNTS, by_count, strict=True):
            losses |= {f'lora-{count}-seed{seed}': 1.0, f'malora-{count}-seed{seed}': 2.0 + change}
        means.append(10 * np.polyfit(fair_task_counts.COUNTS, by_count, 1)[0])
    record(archive, 'fair_task_counts', losses)
    by_seed = fair_hypotheses._means(fair_hypotheses._slope_gains('malora'))
    assert [*by_seed.values()] == pytest.approx(means)
    low, high = seed_interval(means)
    row = [*cells(fair_hypotheses.hypotheses()).values()][-2]
    assert row[1] == f'{np.mean(means):+.3f} [{low:+.3f}, {high:+.3f}]'


def test_tasks_alone_are_the_row_of_one_task(archive):
    tasks = fair_task_counts.TASKS
    losses = {'lora-12-seed0': 1.0, 'malora-12-seed0': 0.9}
    losses |= {f'lora-{task}-seed0': 2.0 + n / 10 for n, task in enumerate(tasks)}
    losses |= {f'malora-{task}-seed0': 1.9 + n / 5 for n, task in enumerate(tasks)}
    correct = {f'malora-{task}-seed0': 10 for task in tasks}
    record(archive, 'fair_task_counts', losses, correct=correct)
    counts = cells(fair_number_of_tasks.task_counts_table())
    alone = counts['1, mean of 12']
    assert alone[0] == '2.564'  # 2.55, and the mean of the questions' (q % 7) / 200.
    assert alone[2].startswith('+0.450 [') and alone[2].endswith(', 1 seed')
    assert alone[4:] == ['50.0', '–', '25.0']
    assert counts['12'][4:] == ['50.0', '–', '50.0']
    gains = cells(fair_number_of_tasks.single_tasks_table())
    assert gains['gcd'] == [
        '-1.900 [-1.900, -1.900], 1 seed',
        '–',
        '-2.800 [-2.800, -2.800], 1 seed',
    ]
    assert [cell.split()[0] for cell in gains['mean']] == ['-1.550', '–', '-2.100']


def test_differences_by_task_are_means_over_mixtures_and_seeds(archive):
    first, second, *others = fair_task_counts.TASKS
    losses = {f'lora-2-seed{seed}': 1.0 for seed in range(2)}
    losses |= {'molora-2-seed0': 1.1, 'molora-2-seed1': 1.3, 'malora-2-seed0': 0.8}
    losses |= {f'lora-{first}-seed0': 2.0, f'molora-{first}-seed0': 2.5}
    record(archive, 'fair_task_counts', losses)
    by_task = cells(fair_number_of_tasks.differences_by_task_table())
    assert by_task[first] == by_task[second] == ['–', '+0.000', '–', '–', '–']
    assert [*by_task] == ['task', first, second, *others]
    assert by_task[others[0]] == ['–'] * 5
    assert fair_number_of_tasks.values()[2]['molora']['mean'] == pytest.approx(0.2)


def test_a_mean_over_tasks_alone_needs_all_of_them(archive):
    tasks = fair_task_counts.TASKS
    losses = {f'lora-{task}-seed0': 2.0 for task in tasks}
    losses |= {f'molora-{task}-seed0': 1.0 for task in tasks[1:]} | {'molora-12-seed0': 0.5}
    record(archive, 'fair_task_counts', losses)
    counts = cells(fair_number_of_tasks.task_counts_table())
    assert counts['1, mean of 12'] == ['2.014', '–', '–', '–', '50.0', '–', '–']
    gains = cells(fair_number_of_tasks.single_tasks_table())
    assert gains['gcd'][1].startswith('-0.500') and gains['mean'][1] == '–'


@pytest.fixture
def figures(monkeypatch):
    """Return the axes of each picture that is drawn, by the name of its file."""
    drawn = {}
    monkeypatch.setattr(
        pictures_fair, 'save', lambda figure, path: drawn.update({path.name: figure.axes})
    )
    return drawn


def draw(name):
    pictures_fair.PICTURES[name](pathlib.Path(name))


def test_pictures_of_study_a(archive, figures):
    means = {'lora': 1.0, 'malora': 0.9, 'malora_unshared': 1.3, 'molora_top1': 1.1}
    losses = {f'{row}-seed{seed}': loss for row, loss in means.items() for seed in (0, 1)}
    record(archive, 'fair_methods', losses)
    draw('fair_differences.svg')
    (axes,) = figures['fair_differences.svg']
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        *('malora', 'molora_top1', 'malora_unshared')
    ]
    places = [[*line.get_xdata()] for line in axes.lines if line.get_marker() == 'o']
    assert [place for at in places for place in at] == pytest.approx([-0.1, 0.1, 0.3])
    draw('fair_parameters.svg')
    left, _ = figures['fair_parameters.svg']
    crosses = [[*line.get_ydata()] for line in left.lines if line.get_marker() == 'x']
    assert [len(values) for values in crosses] == [2, 2]  # Of LoRA and MALoRA, two seeds each.
    draw('fair_curves.svg')
    (curves,) = figures['fair_curves.svg']
    assert [line.get_label() for line in curves.lines] == ['lora', 'malora']


def test_rows_are_shown_once_and_by_difference(archive, figures):
    # The mean of `dora` is lower, its difference from LoRA with the same seed is not.
    losses = {'lora-seed0': 1.0, 'lora-seed1': 3.0, 'dora-seed0': 1.5}
    losses |= {'malora_small-seed0': 1.1, 'malora_small-seed1': 3.1}
    record(archive, 'fair_methods', losses)
    draw('fair_differences.svg')
    (axes,) = figures['fair_differences.svg']
    assert [text.get_text() for text in axes.get_yticklabels()] == ['malora_small', 'dora']
    table = cells(tables_fair.PARTS['fair methods']())
    assert [*table][1:] == ['`lora`', '`malora_small`', '`dora`']
    draw('fair_parameters.svg')
    _, right = figures['fair_parameters.svg']
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        *('lora', 'dora', 'malora_small')
    ]


def test_the_picture_of_learning_rates(archive, figures):
    rates = {0.001: 3, 0.002: 1, 0.004: 2}
    losses = {f'lora-learning_rate{rate}-seed0': loss for rate, loss in rates.items()}
    record(archive, 'fair_rates', losses)
    draw('fair_rates.svg')
    curve, best = figures['fair_rates.svg'][0].lines
    assert dict(zip(*curve.get_data(), strict=True)) == rates
    assert [*map(list, best.get_data())] == [[0.002], [1]]


def test_the_picture_of_task_counts(archive, figures):
    losses = {f'lora-{count}-seed0': 1.0 for count in (2, 12)}
    losses |= {'malora-2-seed0': 1.1, 'malora-12-seed0': 0.8, 'molora-12-seed0': 0.7}
    record(archive, 'fair_task_counts', losses)
    draw('fair_task_counts.svg')
    (axes,) = figures['fair_task_counts.svg']
    curves = [bars.lines[0] for bars in axes.containers]
    assert [*curves[0].get_ydata()] == pytest.approx([0.1, -0.2])
    assert [*curves[0].get_xdata()] == [0, 3]
    assert [*curves[1].get_ydata()] == pytest.approx([-0.3])


def test_gradients_in_the_first_and_last_steps(archive):
    record(archive, 'fair_methods', {'lora-seed0': 1.0})
    run = tables_fair.groups('fair_methods')['lora'].runs[0]
    records = [{'gradient_norm/up': norm} for norm in (8, 4, *[1] * 16, 0.5, 0.25)]
    run.__dict__['records'] = records
    (row,) = [*cells(fair_why.gradients_table()).values()][1:]
    assert row == ['6 → 0.38']


def test_the_share_of_clipped_steps(archive):
    record(archive, 'fair_methods', {'lora-seed0': 1.0})
    run = tables_fair.groups('fair_methods')['lora'].runs[0]
    assert run.raw_config['optimizer']['clip_norm'] == 1.0
    run.__dict__['records'] = [{'gradient_norm': norm} for norm in (8, 1.5, 1, 0.5, 0.25)]
    assert fair_why.VALUES['clipped']() == {'lora': 40.0}


@pytest.mark.parametrize('row', ['malora', 'malora_small'])
def test_numbers_of_a_report_are_kept(row, archive):
    means = {'effective_experts': 7.98765, 'task_information': 0.123456}
    report = {
        'similarity': [
            {
                'compared': 'experts',
                'A': {
                    'trained': {'q': [0.5, 0.7], 'k': [None, 0.3]},
                    'start': None,
                    'independent': {'q': [0.1, 0.1], 'k': [0.1, 0.1]},
                },
            }
        ],
        'runs': {f'{row}-seed0': {}},
        f'routing-{row.replace("_", "-")}-seed0': {
            'questions': 192,
            'experts': 8,
            'steps': {'0': means, '240': means | {'effective_experts': 4.0}},
            'max_chance_information': 0.02,
            'max_information': 2.0,
            'idle_experts': {'q': [1, 0], 'k': [2, 1]},
        },
    }
    path = archive / 'analysis.json'
    path.write_text(json.dumps(report))
    fair_why.store(path)
    assert cells(fair_why.routing_table())[f'`{row}`'] == [
        *('7.99', '4.00 of 8', '12.5%', '0.123 → 0.123', '0.020', '2.00')
    ]
    assert cells(fair_why.similarity_table())[f'`{row}`'] == ['0.500', '–', '0.100', '–', '–']
    path.write_text(json.dumps({'similarity': [], 'routing-lora-seed0': None}))
    with pytest.raises(ValueError, match='reports on 0 runs with a router, not on one'):
        fair_why.store(path)


def test_sums_of_gates_are_those_of_reports_that_have_them(archive):
    steps = {'240': {'gate_sum': 0.4}, '0': {'gate_sum': 0.25}, '60': {'gate_sum': 0.5}}
    numbers = {'malora-seed0': {'steps': steps}, 'molora-seed0': {'steps': {'0': {}, '240': {}}}}
    (archive / 'results' / 'fair_why').mkdir(parents=True)
    for run, content in numbers.items():
        (archive / 'results' / 'fair_why' / f'{run}.json').write_text(json.dumps(content))
    assert [*cells(fair_why.gates_table()).items()][1:] == [('`malora`', ['0.25', '0.40'])]
    assert fair_why.VALUES['gates']() == {'malora': {'start': 0.25, 'end': 0.4}}


def test_losses_of_the_base_model_are_next_to_those_of_lora(archive):
    record(archive, 'fair_methods', {'lora-seed0': 1.0, 'lora-seed1': 3.0})
    group = tables_fair.groups('fair_methods')['lora']
    for loss, run in zip((4.0, 6.0), group.runs, strict=True):
        run.results['tasks']['chain_sum'] |= {'loss_before': loss, 'before': loss / 100}
    row = cells(tables_fair.base_table())['chain_sum']
    assert row[0] == '5.000' and row[2] == '5.0'
    assert row[1] == f'{group.mean_over_seeds("loss", "chain_sum"):.3f}' == '2.014'
    assert row[3] == f'{100 * group.mean_over_seeds("score", "chain_sum"):.1f}'


def test_real_tasks_have_accuracies_of_the_base_model_and_of_one_constant_answer(archive):
    record(archive, 'fair_real_tasks', {'lora-seed0': 1.0, 'malora-seed0': 0.9})
    known = tables_fair.groups('fair_real_tasks')
    for accuracy, name in ((0.4, 'lora'), (0.5, 'malora')):
        (run,) = known[name].runs
        for result in run.results['tasks'].values():
            result |= {'loss_before': 4.0, 'best_constant': 0.25, 'before': 0.3, 'after': accuracy}
    table = cells(tables_fair.real_scores_table())
    assert table['task'] == [
        *('base model, loss', 'LoRA, loss', 'one answer, %', 'base model, %'),
        *('`lora`, %', '`malora`, %'),
    ]
    row = table['piqa']
    assert row[0] == '4.000' and row[2:] == ['25.0', '30.0', '40.0', '50.0']
    assert row[1] == f'{known["lora"].mean_over_seeds("loss", "piqa"):.3f}'


def test_an_empty_archive_says_so(figures):
    for name in pictures_fair.PICTURES:
        draw(name)
        assert figures[name] == []
    parts = tables_fair.PARTS | fair_number_of_tasks.PARTS
    studies = ('methods', 'rates', 'task counts', 'base', 'tasks')
    real = ('real rates', 'real tasks', 'real scores', 'real differences')
    for name in (f'fair {name}' for name in (*studies, *real)):
        assert parts[name]() == tables_fair.NO_RUNS
    assert fair_hypotheses.seeds_table() == tables_fair.NO_RUNS
    assert fair_why.gradients_table() == tables_fair.NO_RUNS


def test_numbers_that_texts_name(archive):
    rates = {0.001: 3, 0.002: 1, 0.004: 2}
    record(
        archive,
        'fair_rates',
        {f'lora-learning_rate{rate}-seed0': loss for rate, loss in rates.items()},
    )
    record(archive, 'fair_methods', {'lora-seed0': 1.0, 'malora-seed0': 0.9})
    found = tables_fair.values()
    assert found['rates'] == {'lora': 0.002} and found['screened'] == {'lora': 1}
    assert found['malora']['minus']['mean'] == pytest.approx(-0.1)
    assert (found['lora']['seeds'], found['lora']['minus']) == (1, None)
    assert found['lora']['minus_malora']['mean'] == pytest.approx(0.1)
    assert found['lora']['minus_molora'] is None
    with pytest.raises(KeyError, match='plus_molora'):
        found['lora']['plus_molora']


def test_repetitions_are_compared_by_row_and_seed(archive):
    first = {'lora-seed0': 0.2, 'lora-seed1': 0.3, 'malora-seed1': 0.4}
    second = {'lora-seed0': 0.25, 'lora-seed1': 0.3, 'lora-seed2': 0.9, 'malora-seed1': 0.38}
    record(archive, tables_fair.EARLIER, first)
    record(archive, 'fair_methods', second)
    table = cells(fair_repetitions.table())
    assert table.pop('row') == ['seed 0', 'seed 1']
    changes = {row: [text.partition(', ')[2] for text in texts] for row, texts in table.items()}
    assert changes == {'`lora`': ['+0.050', '+0.000'], '`malora`': ['', '-0.020']}
    np.testing.assert_allclose(
        [*fair_repetitions.values().values()], [((0.05**2 + 0.02**2) / 3) ** 0.5, 0.05], atol=1e-4
    )
