"""Tables of the paper, made from directories in the form that runs leave."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from configs import inter_domain, intra_domain, intra_domain_small
from malora_jax.analysis.page import to_markdown
from malora_jax.analysis.report import write_report
from malora_jax.analysis.task_plots import plot_seesaw
from malora_jax.errors import UserError
from malora_jax.runs import paper
from malora_jax.statistics import Interval, PairedDifference
from malora_jax.sweeps import expand
from tests.helpers.finished_runs import QUESTIONS, write_finished_run
from tests.helpers.paths import ROOT

TASKS = intra_domain.TASKS


def small(method: str):
    return intra_domain_small.get_config(method)


def seven(method: str):
    return inter_domain.get_config(method)


def rows_of(text: str, heading: str = 'Scores in %, each') -> dict[str, list[str]]:
    """Return the cells by row of the first table below a heading."""
    lines = text[text.index(heading) :].splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith('|---'))
    found: dict[str, list[str]] = {}
    name = ''
    for line in lines[first + 1 :]:
        if not line.startswith('|'):
            break
        label, *cells = [cell.strip() for cell in line.strip('|').split('|')]
        name = f'{name} (paper)' if label == '*in the paper*' else label
        found[name] = cells
    return found


def make_table(table: str, directory: pathlib.Path, output: pathlib.Path) -> str:
    """Return the report about all runs in a directory, as Markdown."""
    return to_markdown('title', write_report([directory], output, table=table, routing=False))


def refused(table: str, directory: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        make_table(table, directory, directory / 'refused')
    assert not (directory / 'refused').exists()
    return str(caught.value).replace(str(directory), 'DIR')


AVERAGES, LOSSES = 'Averages over tasks', 'Answer losses, means'
ALONE = 'Differences of scores in percentage points'


# Scores.


def test_scores_stand_above_the_paper_s_with_wilson_s_interval(tmp_path):
    right = dict(zip(TASKS, (40, 0, 10, 20, 30), strict=True))
    write_finished_run(tmp_path / 'anything', small('malora'), right)
    rows = rows_of(make_table('table2', tmp_path, tmp_path / 'out'))
    assert list(rows) == ['base', 'MALoRA', 'MALoRA (paper)']
    for cell, count in zip(rows['MALoRA'], right.values(), strict=False):
        low, high = stats.binomtest(count, QUESTIONS).proportion_ci(method='wilson')
        assert cell == f'{100 * count / QUESTIONS:.1f} [{100 * low:.1f}, {100 * high:.1f}]'
    assert rows['MALoRA'][-1].startswith('50.0 [')
    assert rows['MALoRA (paper)'] == ['–'] * 5 + ['*80.47*']
    assert rows['base'][0] == '25.0 [14.2, 40.2]'


def test_the_average_s_interval_takes_tasks_as_they_are(tmp_path):
    """Only the third task is uncertain: the interval is its bootstrap interval, divided by five."""
    write_finished_run(
        tmp_path / 'malora', small('malora'), {**dict.fromkeys(TASKS, 0), 'piqa': 40, 'boolq': 20}
    )
    cell = rows_of(make_table('table2', tmp_path, tmp_path / 'out'))['MALoRA'][-1]
    mean, low, high = map(float, re.findall(r'[\d.]+', cell))
    sides = stats.binom.ppf([0.025, 0.975], QUESTIONS, 0.5) / QUESTIONS
    assert mean == 30.0
    np.testing.assert_allclose([low, high], 100 * (1 + sides) / 5, atol=0.51)


def test_seeds_are_averaged(tmp_path):
    write_finished_run(tmp_path / 'a', small('malora'), 20, seed=0, loss=1.0)
    write_finished_run(tmp_path / 'b', small('malora'), 30, seed=7, loss=2.0)
    text = make_table('table2', tmp_path, tmp_path / 'out')
    rows = rows_of(text)
    assert list(rows) == ['base', 'MALoRA', 'MALoRA (paper)']
    assert [cell.split()[0] for cell in rows['MALoRA']] == ['62.5'] * 6
    # Losses are 1 to 5 and 2 to 6. The only row is compared with the base model, whose loss is 4.
    assert rows_of(text, LOSSES)['MALoRA'][0] == '3.500'
    assert rows_of(text, LOSSES)['MALoRA'][1].startswith('-0.500 [')
    assert rows_of(text, AVERAGES)['MALoRA'][:2] == ['1,234,567 (2.1%)', '0: 50.0, 7: 75.0']


def test_the_rows_of_single_tasks_are_put_together(tmp_path):
    for task, right in zip(TASKS, (4, 8, 12, 16, 20), strict=True):
        write_finished_run(
            tmp_path / f'malora-{task}-seed1', small(f'malora,task={task}'), {task: right}, seed=1
        )
    text = make_table('table2', tmp_path, tmp_path / 'out')
    cells = rows_of(text)['malora_single']
    assert [cell.split()[0] for cell in cells] == ['10.0', '20.0', '30.0', '40.0', '50.0', '30.0']
    assert rows_of(text, AVERAGES)['malora_single'][1] == '1: 30.0'


def test_an_average_needs_all_tasks(tmp_path):
    write_finished_run(tmp_path / 'lora', small('lora'), 20)
    write_finished_run(tmp_path / 'lora-boolq', small('lora,task=boolq'), 30)
    text = make_table('table2', tmp_path, tmp_path / 'out')
    cells = rows_of(text)['lora_single']
    assert [cell.split()[0] for cell in cells] == ['–', '–', '75.0', '–', '–', '–']
    assert rows_of(text, AVERAGES)['lora_single'][1:] == ['–', '–', '–']
    assert rows_of(text, LOSSES)['lora_single'] == ['–', '–']


# Differences.


def test_differences_to_lora_and_molora(tmp_path):
    write_finished_run(tmp_path / 'lora', small('lora'), 0)
    write_finished_run(tmp_path / 'molora', small('molora'), 40)
    write_finished_run(tmp_path / 'malora', small('malora'), 40, correct_before=40)
    rows = rows_of(make_table('table2', tmp_path, tmp_path / 'out'), AVERAGES)
    none = '+0.0 [+0.0, +0.0], not significant'
    assert rows['LoRA'][2:] == ['–', '–', '-100.0 [-100.0, -100.0]', '*-1.21*']
    assert rows['MoLoRA'][2:] == ['+100.0 [+100.0, +100.0]', '*+1.21*', '–', '–']
    assert rows['MALoRA'][2:] == ['+100.0 [+100.0, +100.0]', '*+1.99*', none, '*+0.78*']


def test_differences_are_paired(tmp_path):
    """MALoRA answers what LoRA answers and three more: unpaired intervals would overlap widely."""
    write_finished_run(tmp_path / 'lora', small('lora'), 20)
    write_finished_run(tmp_path / 'malora', small('malora'), 23)
    cell = rows_of(make_table('table2', tmp_path, tmp_path / 'out'), AVERAGES)['MALoRA'][2]
    mean, low, high = map(float, re.findall(r'[+-][\d.]+', cell))
    assert mean == 7.5 and 0 < low < mean < high
    assert 'significant' not in cell


def test_one_question_makes_no_difference(tmp_path):
    write_finished_run(tmp_path / 'lora', small('lora'), 20)
    write_finished_run(
        tmp_path / 'malora', small('malora'), {**dict.fromkeys(TASKS, 20), 'piqa': 21}
    )
    cell = rows_of(make_table('table2', tmp_path, tmp_path / 'out'), AVERAGES)['MALoRA'][2]
    assert cell == '+0.5 [+0.0, +1.5], not significant'


def same_nats(value: float) -> dict[str, list[float]]:
    return {task: [value] * QUESTIONS for task in TASKS}


def test_a_loss_is_all_nats_by_all_tokens(tmp_path):
    """Half of the questions have 1 nat for one token, the others 9 for three; seeds differ."""
    one = dict.fromkeys(TASKS, [1.0, 9.0] * (QUESTIONS // 2))
    write_finished_run(tmp_path / 'lora-0', small('lora'), 20, nats=same_nats(4.0))
    write_finished_run(tmp_path / 'malora-0', small('malora'), 20, seed=0, nats=one)
    write_finished_run(tmp_path / 'malora-1', small('malora'), 20, seed=1, nats=same_nats(2.0))
    rows = rows_of(make_table('table2', tmp_path, tmp_path / 'out'), LOSSES)
    assert rows['LoRA'] == ['2.000', '–']
    # (20 · 1 + 20 · 9) / 80 = 2.5 and 80 / 80 = 1; the mean of ratios would be 2 and 4/3.
    loss, change = rows['MALoRA']
    assert loss == '1.750'
    mean, low, high = map(float, re.findall(r'[+-][\d.]+', change))
    # By question, the mean over seeds is 0.75 or 2.75: a standard deviation of 1 over 200
    # questions.
    half = stats.norm.ppf(0.975) / (QUESTIONS * len(TASKS)) ** 0.5
    assert mean == -0.25
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.006)
    assert rows['base'] == ['4.000', '+2.000 [+2.000, +2.000]']


def test_differences_of_losses_are_paired(tmp_path):
    """Questions cost 0 to 39 nats, and each a quarter nat less with MALoRA: no uncertainty."""
    for name, less in (('lora', 0.0), ('molora', 0.0), ('malora', 0.25)):
        nats = {task: [q - less for q in range(QUESTIONS)] for task in TASKS}
        write_finished_run(tmp_path / name, small(name), 20, nats=nats)
    rows = rows_of(make_table('table2', tmp_path, tmp_path / 'out'), LOSSES)
    same, lower = '+0.000 [+0.000, +0.000], not significant', '-0.125 [-0.125, -0.125]'
    assert rows['LoRA'] == ['9.750', '–', same]
    assert rows['MoLoRA'] == ['9.750', same, '–']
    assert rows['MALoRA'] == ['9.625', lower, lower]


def test_the_interval_of_a_loss_is_that_of_other_questions(tmp_path):
    """Half of each task's questions are 1 nat above LoRA, half below: a binomial sample."""
    nats = dict.fromkeys(TASKS, [3.0, 1.0] * (QUESTIONS // 2))
    write_finished_run(tmp_path / 'lora', small('lora'), 20, nats=same_nats(2.0))
    write_finished_run(tmp_path / 'malora', small('malora'), 20, nats=nats)
    cell = rows_of(make_table('table2', tmp_path, tmp_path / 'out'), LOSSES)['MALoRA'][1]
    mean, low, high = map(float, re.findall(r'[+-][\d.]+', cell))
    questions = QUESTIONS * len(TASKS)
    expected = stats.binom.ppf([0.025, 0.975], questions, 0.5) / questions
    assert mean == 0 and cell.endswith('], not significant')
    np.testing.assert_allclose([low, high], expected - 0.5, atol=0.006)


def test_the_seesaw(tmp_path):
    """Rows are compared with single-task LoRA, MALoRA with single-task MALoRA if there is one."""
    columns = list(inter_domain.TRAINING_DATA)
    for task in columns:
        write_finished_run(tmp_path / f'lora-{task}', seven(f'lora,task={task}'), {task: 20})
    write_finished_run(tmp_path / 'malora-gsm8k', seven('malora,task=gsm8k'), {'gsm8k': 0})
    write_finished_run(
        tmp_path / 'lora', seven('lora'), dict.fromkeys(columns, 20) | {'gsm8k': 0, 'e2e_nlg': 40}
    )
    write_finished_run(tmp_path / 'malora', seven('malora'), 20)
    text = make_table('table1', tmp_path, tmp_path / 'out')
    rows = rows_of(text, ALONE)
    assert list(rows) == ['LoRA', 'LoRA (paper)', 'MALoRA']
    against, *cells, count = rows['LoRA']
    assert against == 'LoRA (single task)' and count == '1 : 1'
    assert [float(re.match(r'[+-][\d.]+', cell)[0]) for cell in cells] == [0, 0, -50, 0, 0, 0, 50]
    assert [cell.endswith(', not significant') for cell in cells] == [
        *(True, True, False, True, True, True, False)
    ]
    assert rows['LoRA (paper)'] == [
        *('*LoRA (single task)*', '*+0.7*', '*+0.0*', '*-2.5*', '*-7.8*', '*-3.3*', '*-2.8*'),
        *('*-0.5*', '–'),
    ]
    against, *cells, count = rows['MALoRA']
    # Tasks without a single-task MALoRA run are compared with single-task LoRA.
    assert against == 'LoRA (single task), malora_single' and count == '1 : 0'
    assert [float(re.match(r'[+-][\d.]+', cell)[0]) for cell in cells] == [0, 0, 50, 0, 0, 0, 0]


def test_without_single_tasks_there_is_no_seesaw(tmp_path):
    write_finished_run(tmp_path / 'lora', small('lora'), 20)
    assert ALONE not in make_table('table2', tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'seesaw.png').exists()


# The row that a run belongs to.


@pytest.mark.parametrize('name', paper.PAPER_TABLES)
def test_every_run_of_a_sweep_belongs_to_the_row_of_its_name(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = paper.PAPER_TABLES[name]
    sweep = importlib.import_module(f'configs.sweeps.{name}').get_config().to_dict()
    found = {(run.seed_group, table.row_of(run.config)) for run in expand(sweep).values()}
    for run, row in found:
        method, dash, task = run.partition('-')
        assert row == (f'{method}_single' if dash else run)
        assert not dash or task in table.tasks
    assert {row for _, row in found} == table.rows.keys() - {'base'}


def test_written_and_read_again_a_run_belongs_to_its_row():
    config = json.loads(json.dumps(seven('malora_fixed_core').to_dict()))
    assert paper.PAPER_TABLES['table3'].row_of(config) == 'malora_fixed_core'


def test_on_another_base_the_method_decides_where_only_ranks_differ():
    config = small('malora')
    assert paper.PAPER_TABLES['table2'].row_of(config) == 'malora'
    assert paper.PAPER_TABLES['table12'].row_of(config) is None
    config.adapter.renormalize = True
    assert paper.PAPER_TABLES['table2'].row_of(config) is None
    config = intra_domain.get_config('malora')
    config.adapter.rank = 10
    assert paper.PAPER_TABLES['table2'].row_of(config) is None
    config.adapter.shared_rank = 48
    assert paper.PAPER_TABLES['table12'].row_of(config) == 'malora_d48_beta125'


def test_beta_counts_where_it_has_an_effect():
    table = paper.PAPER_TABLES['table2']
    for method, row in (('lora', 'lora'), ('molora', 'molora'), ('malora', None)):
        config = intra_domain.get_config(method)
        config.adapter.beta = 3.0
        assert table.row_of(config) == row


def test_other_runs_have_rows_of_their_own(tmp_path):
    write_finished_run(tmp_path / 'wide-seed0', small('lora'), 20)
    config = small('lora')
    config.adapter.dropout = 0.0
    write_finished_run(tmp_path / 'no_dropout-seed0', config, 30)
    rows = rows_of(make_table('table2', tmp_path, tmp_path / 'out'))
    assert list(rows) == ['base', 'LoRA', 'LoRA (paper)', 'no_dropout']


# Notes and error messages.


def test_what_is_missing_and_what_else_differs_is_told(tmp_path):
    write_finished_run(tmp_path / 'lora', small('lora'), 20)
    config = small('malora')
    config.optimizer.learning_rate = 0.002
    config.training.checkpoint_every = 7
    write_finished_run(tmp_path / 'malora', config, 20)
    text = make_table('table2', tmp_path, tmp_path / 'out')
    assert '\nWithout a finished run: AsyLoRA, DoRA, MoLoRA.\n' in text
    assert (
        '\nThe rows differ in optimizer.learning_rate: 0.001 for lora; 0.002 for malora.\n' in text
    )
    assert text.count('The rows differ') == 1
    assert (
        '\n- boolq: accuracy of 40 questions; rule likelihood, form completion, shots 0\n' in text
    )
    report = (tmp_path / 'out' / 'report.md').read_text('utf-8')
    assert report.partition('\n')[2] == text.partition('\n')[2] + '\n'


def test_an_average_that_is_not_its_row_s_mean_is_told(tmp_path):
    config = seven('molora')
    config.adapter.rank = 16
    write_finished_run(tmp_path / 'molora_r16', config, 20)
    rows = rows_of(make_table('table11', tmp_path, tmp_path / 'out'))
    assert rows['MoLoRA r = 16 (paper)'][-1] == '*56.37 (printed: 56.19)*'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seed': 0}, 'The runs DIR/a and DIR/b belong to the same row, but have the same seed: '),
        (
            {'seed': 1, 'steps': 9},
            'The runs DIR/a and DIR/b belong to the same row, but differ in training.steps',
        ),
        (
            {'seed': 1, 'question_format': 'Who is {}?'},
            'The runs DIR/a and DIR/b differ in their held-out ',
        ),
        (
            {'seed': 1, 'scoring': 'letter'},
            'The runs DIR/a and DIR/b differ in their scoring of piqa',
        ),
    ],
)
def test_what_is_no_other_seed_of_a_run_is_refused(tmp_path, changes, message):
    write_finished_run(tmp_path / 'a', small('malora'), 20)
    config = small('malora')
    config.training.steps = changes.pop('steps', config.training.steps)
    write_finished_run(tmp_path / 'b', config, 20, **changes)
    assert refused('table2', tmp_path).startswith(message)


def test_single_tasks_are_trained_alike(tmp_path):
    for number, task in enumerate(TASKS):
        config = small(f'lora,task={task}')
        config.data.weights = (1.0 + number,)
        config.data.task_settings = (f'{task}.form=sectioned',)
        write_finished_run(tmp_path / f'lora-{task}', config, {task: 20}, seed=number)
    assert 'lora_single' in rows_of(make_table('table2', tmp_path, tmp_path / 'out'))
    config = small('lora,task=boolq')
    config.optimizer.learning_rate = 0.002
    write_finished_run(tmp_path / 'lora-boolq-seed5', config, {'boolq': 20}, seed=5)
    assert refused('table2', tmp_path) == (
        'The runs DIR/lora-piqa and DIR/lora-boolq-seed5 belong to the same row, but differ in '
        'optimizer.learning_rate: move one of them to another directory.'
    )


def test_single_tasks_are_asked_the_same_questions(tmp_path):
    write_finished_run(tmp_path / 'lora', small('lora'), 20)
    write_finished_run(
        tmp_path / 'lora-boolq', small('lora,task=boolq'), 20, question_format='Is it {}?'
    )
    assert refused('table2', tmp_path).startswith(
        'The runs DIR/lora and DIR/lora-boolq differ in their held-out questions of boolq: '
    )


def test_other_tasks_are_refused(tmp_path):
    config = small('lora')
    config.evaluation.tasks = ('boolq', 'piqa')
    write_finished_run(tmp_path / 'lora', config, 20)
    assert refused('table2', tmp_path) == (
        'The run DIR/lora is scored on boolq, piqa; for Table 2, intra-domain, it must be all '
        'of piqa, openbookqa, boolq, arc_challenge, arc_easy.'
    )


def test_a_name_that_says_another_row_is_refused(tmp_path):
    config = intra_domain.get_config('malora')
    config.adapter.rank = 16
    write_finished_run(tmp_path / 'malora-seed0', config, 20)
    assert refused('table2', tmp_path) == (
        'The run DIR/malora-seed0 has another adapter than the row malora of Table 2, '
        'intra-domain: rename its directory to give it a row of its own.'
    )


# Plots and command.


def test_curves_and_changes_are_plotted(tmp_path, monkeypatch):
    figures = {}
    save = Figure.savefig

    def keep(figure, path, **options):
        figures[path.name] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, 'savefig', keep)
    for seed in (0, 1):
        write_finished_run(tmp_path / f'lora-{seed}', small('lora'), 20, seed=seed, loss=2.0)
    write_finished_run(tmp_path / 'malora', small('malora'), 30)
    write_finished_run(tmp_path / 'lora-boolq', small('lora,task=boolq'), 20)
    make_table('table2', tmp_path, tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        *('report.html', 'report.md', 'analysis.json'),
        *('curves.png', 'tasks.png', 'seesaw.png'),
    }
    curves, changes = figures['.tasks.tmp.png'], figures['.seesaw.tmp.png']
    assert [axes.get_title() for axes in curves.axes][:2] == ['arc_challenge', 'arc_easy']
    losses = [line.get_ydata()[0] for line in curves.axes[0].lines if len(line.get_ydata())]
    np.testing.assert_allclose(losses, [2.75, 2.75, 1.75])
    (axes,) = changes.axes
    assert [line.lines[0].get_xdata().tolist() for line in axes.containers] == [[0.0], [25.0]]
    (legend,) = changes.legends
    assert [text.get_text() for text in legend.get_texts()] == ['LoRA', 'MALoRA']


def test_the_command(tmp_path):
    write_finished_run(tmp_path / 'malora', small('malora'), 20)
    command = [sys.executable, '-m', 'experiments.analyze', f'--workdir={tmp_path}']
    options = {'cwd': ROOT, 'capture_output': True, 'text': True, 'timeout': 120}
    done = subprocess.run([*command, '--table=table2'], **options)
    assert (done.returncode, done.stderr) == (0, '')
    *printed, path = done.stdout.splitlines()
    assert path.startswith(f'{tmp_path}/analysis/report.html: ')
    report = (tmp_path / 'analysis' / 'report.md').read_text('utf-8')
    assert printed[0].startswith('## Table 2, intra-domain') and '\n'.join(printed) in report
    done = subprocess.run([*command, '--table=table4'], **options)
    assert done.returncode == 2 and 'table1|table2|table3' in done.stderr


def test_a_mean_that_rounding_puts_outside_its_interval_is_plotted(tmp_path):
    change = PairedDifference(0.1, Interval(0.1 + 1e-12, 0.1 + 1e-12), 0.1)
    plot_seesaw(tmp_path / 'changes.png', {'LoRA': {'boolq': change}})
    assert (tmp_path / 'changes.png').exists()
