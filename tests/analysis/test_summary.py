"""The summary of a report: its sentences in planted situations."""

import json
import pathlib

import pytest

from configs import intra_domain, intra_domain_small
from malora_jax.analysis.page import BulletList, Fold, Section
from malora_jax.analysis.sections.summary import summary_section
from malora_jax.files import read_json, read_json_lines
from malora_jax.runs import LoadedRun, read_runs, seed_groups
from tests.helpers.finished_runs import write_finished_run

TASKS = intra_domain.TASKS


def write_run(directory: pathlib.Path, correct, method: str = 'malora', **options) -> None:
    write_finished_run(directory, intra_domain_small.get_config(method), correct, **options)


def summarize(directory: pathlib.Path, routing=None) -> Section:
    """Return the summary of all runs in a directory."""
    runs = read_runs([directory])
    return summary_section(runs, seed_groups(runs), routing or {})


def items(section: Section, title: str) -> list[str]:
    """Return the sentences below a heading of the summary."""
    (found,) = [b.items for b in section.blocks if isinstance(b, BulletList) and b.title == title]
    return [*found]


def change_results(run: pathlib.Path, **fields) -> None:
    """Set fields of every task in results.json."""
    results = read_json(run / 'results.json')
    for task in results['tasks'].values():
        task.update(fields)
    (run / 'results.json').write_text(json.dumps(results))


def change_lines(path: pathlib.Path, change) -> None:
    """Apply a function to every row of a file of JSON lines."""
    rows = read_json_lines(path)
    for row in rows:
        change(row)
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


# Scores and gains.


def test_a_gain_has_its_interval_and_the_baseline(tmp_path):
    write_run(tmp_path / 'run', 40)
    change_results(tmp_path / 'run', best_constant=0.5)
    found = summarize(tmp_path)
    assert found.blocks[0].text == (
        'malora on smollm2-135m, seed 0. Scores are in %, on 200 held-out questions in 5 tasks; '
        'brackets show 95% intervals over questions. All tasks have the same weight.'
    )
    (score,) = items(found, 'Scores')
    assert score.startswith('25.0 [') and '100.0 [96.1, 100.0] after: +75.0 [+69' in score
    assert 'The majority baseline is 50.0. The answer loss goes from 4.000 to 3.000' in score
    (gains,) = items(found, 'What was learned')
    assert gains.startswith('Clear gains (points): ') and all(task in gains for task in TASKS)
    nothing, not_measured = items(found, 'What to look at')
    assert nothing.startswith('Nothing stands out') and 'not measured' in not_measured


def test_what_cannot_be_told_apart_is_no_gain(tmp_path):
    write_run(tmp_path / 'run', 10)
    found = summarize(tmp_path)
    (score,) = items(found, 'Scores')
    assert '+0.0 [+0.0, +0.0] points, not distinguishable from 0.' in score
    none, same = items(found, 'What was learned')
    assert none == 'No task gains clearly.'
    assert same.startswith('Not distinguishable from before training: ')
    assert all(f'{task} +0.0 [+0.0, +0.0]' in same for task in TASKS)


def test_gains_and_losses_are_told_by_their_intervals(tmp_path):
    write_run(
        tmp_path / 'run', {**dict.fromkeys(TASKS, 10), 'piqa': 30, 'boolq': 0, 'arc_easy': 11}
    )
    up, down, same = items(summarize(tmp_path), 'What was learned')
    assert up.startswith('Clear gains (points): piqa +50.0 [') and up.count('[') == 1
    assert down.startswith('Clear losses (points): boolq -25.0 [') and down.count('[') == 1
    assert 'arc_easy +2.5 [+0.0, +7.5]' in same and same.count('[') == 3


def test_scores_that_do_not_exceed_the_baseline_are_named(tmp_path):
    write_run(tmp_path / 'run', {**dict.fromkeys(TASKS, 40), 'piqa': 20, 'boolq': 2})
    change_results(tmp_path / 'run', best_constant=0.5)
    below, same, _ = items(summarize(tmp_path), 'What to look at')
    assert below == 'Below the majority baseline: boolq 5.0 [1.4, 16.5] (baseline 50.0).'
    assert same.startswith('Not distinguishable from the majority baseline: piqa 50.0 [')


def test_rows_are_compared_with_lora_by_their_intervals(tmp_path):
    write_run(tmp_path / 'lora', 20, 'lora')
    write_run(tmp_path / 'malora', 23, loss=0.5)
    write_run(tmp_path / 'molora', 20, 'molora', loss=2.0)
    found = summarize(tmp_path)
    score, loss, *_ = items(found, 'Differences between rows')
    assert score.startswith(
        'Compared with lora, average score (points): higher: malora +7.5 [+'
    ) and score.endswith('; not distinguishable: molora +0.0 [+0.0, +0.0].')
    assert 'lower is better): higher: molora +1.000 [' in loss and 'lower: malora -0.500 [' in loss
    assert [text.split(':')[0] for text in items(found, 'Scores')] == ['lora', 'malora', 'molora']


def test_rows_with_other_questions_are_not_compared(tmp_path):
    write_run(tmp_path / 'lora', 20, 'lora')
    write_run(tmp_path / 'malora', 30, question_format='Who is {}?')
    score, _ = items(summarize(tmp_path), 'Differences between rows')
    assert score == (
        'Compared with lora, average score (points): not comparable, because of other questions or '
        'tasks: malora.'
    )


def test_the_lists_of_many_rows_are_collapsed(tmp_path):
    for number in range(5):
        write_run(tmp_path / f'run{number}', 20 + number)
    folds = [block for block in summarize(tmp_path).blocks if isinstance(block, Fold)]
    assert [fold.title for fold in folds] == ['Scores', 'What was learned']
    for fold in folds:
        names = [text.split(':')[0] for text in fold.blocks[0].items]
        assert names == [f'run{number}' for number in range(5)]


# Training and answers.


def test_a_validation_loss_that_rose_is_named(tmp_path):
    write_run(tmp_path / 'run', 40, validation={1: 2.0, 2: 1.0, 3: 1.5})
    rise, _ = items(summarize(tmp_path), 'What to look at')
    assert rise == (
        'The validation loss rose after its minimum: mean over tasks from 1.000 at step 2 to 1.500 '
        'at step 3.'
    )


def test_skipped_steps_are_counted(tmp_path):
    write_run(tmp_path / 'run', 40)
    path = tmp_path / 'run' / 'metrics.jsonl'
    change_lines(path, lambda record: record.update(skipped=int(record['step'] == 2)))
    skipped, _ = items(summarize(tmp_path), 'What to look at')
    assert skipped == ('1 of 3 steps had a loss or gradient that is not finite, and were skipped.')


def test_empty_and_identical_answers_are_named(tmp_path):
    write_run(tmp_path / 'run', 40)

    def change(row):
        number = int(row['question'].removeprefix('What is ').removesuffix('?'))
        row['expected'] = f'{number % 3}'
        row['answer'] = 'same' if row['task'] == 'boolq' else f'{number}'
        if row['task'] == 'piqa' and number < 2:
            row['answer'] = ' '

    change_lines(tmp_path / 'run' / 'answers_after.jsonl', change)
    empty, same, _ = items(summarize(tmp_path), 'What to look at')
    assert empty == 'Empty answers after training: piqa (2 of 40).'
    assert same == (
        'The same answer to all questions after training: boolq (40 questions with 3 different '
        'answers).'
    )


# Routers.


def routing_numbers(start: float, end: float, effective: float = 7.0, idle=((0, 0),)) -> dict:
    """Return numbers of a section on routing: chance is 0.02 to 0.03, and the maximum 2 bits."""
    return {
        'experts': 8,
        'min_effective_experts': 2,
        'max_information': 2.0,
        'chance_information': 0.02,
        'max_chance_information': 0.03,
        'idle_experts': {f'linear{j}': [*by_layer] for j, by_layer in enumerate(idle)},
        'steps': {
            0: {'task_information': start, 'effective_experts': 7.5},
            6: {'task_information': end, 'effective_experts': effective},
        },
    }


@pytest.fixture
def routed(tmp_path, monkeypatch):
    """Function that returns the summary of a run with planted numbers of its routers."""
    write_run(tmp_path / 'run', 40)

    def summarize_routing(**numbers) -> Section:
        runs = read_runs([tmp_path])
        monkeypatch.setattr(LoadedRun, 'report_step', 6)
        return summary_section(runs, seed_groups(runs), {'run': routing_numbers(**numbers)})

    return summarize_routing


def test_routers_at_chance_are_not_distinguishable(routed):
    (text,) = items(routed(start=0.02, end=0.025), 'What to look at')
    assert text == (
        'Task information of the routers is 0.025 bits of at most 2.00; 0.020 before training, and '
        '0.020 (at most 0.030) with tasks assigned to the questions at random. It is not '
        'distinguishable from chance.'
    )


def test_routers_that_separate_tasks_only_by_their_start_are_uninformative(routed):
    (text,) = items(routed(start=0.5, end=0.55), 'What to look at')
    assert text.endswith(
        'Compared with before training, that is +0.050 bits: the routers hardly separate the tasks.'
    )


def test_routers_that_separate_the_tasks_are_learned(routed):
    found = routed(start=0.05, end=0.9)
    assert items(found, 'What was learned')[-1].endswith(
        'that is +0.850 bits: the routers separate the tasks.'
    )
    assert items(found, 'What to look at')[0].startswith('Nothing stands out')


def test_collapsed_routers_are_named(routed):
    found = items(
        routed(start=0.05, end=0.9, effective=2.1, idle=((0, 0), (6, 1))), 'What to look at'
    )
    assert found == [
        'The routers use few experts: 2.10 effective experts, mean over routers (8 if balanced, at '
        'least 2, 7.50 before training).',
        '7 of 32 experts get less than a tenth of a balanced load, up to 6 of 8 in one router '
        '(linear1 of layer 0). If this hurts a task, raise adapter.balance_weight.',
    ]


def test_collapsed_routers_are_named_without_a_measurement_too(tmp_path):
    write_run(tmp_path / 'run', 40)
    path = tmp_path / 'run' / 'results.json'
    path.write_text(json.dumps(read_json(path) | {'routing': {'effective_experts': 2.1}}))
    few, _ = items(summarize(tmp_path), 'What to look at')
    assert few == (
        'The routers use few experts: 2.10 effective experts, mean over routers (8 if balanced, at '
        'least 2).'
    )


def test_an_unfinished_run_has_no_scores(tmp_path):
    write_run(tmp_path / 'run', 40)
    run = LoadedRun(tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').unlink()
    found = summary_section([run], [], {})
    assert found.blocks[0].text.endswith('Not finished, and therefore without scores: run.')
    assert [block.title for block in found.blocks[1:]] == ['What to look at']
