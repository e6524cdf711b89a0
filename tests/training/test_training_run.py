import itertools
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.quickstart import get_config
from malora_jax import progress, training
from malora_jax.adapters import trees
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.data import Example
from malora_jax.errors import UserError
from malora_jax.evaluation import runner
from malora_jax.evaluation.scores import Answer
from malora_jax.files import read_json_lines
from malora_jax.models import Decoder
from malora_jax.models.loading.base_model import load_base
from malora_jax.training import run_config
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config_format import read_config
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.setup import build_setup
from malora_jax.training.state import TrainState, create_state
from tests.helpers.metric_records import without_times
from tests.helpers.paths import ROOT
from tests.helpers.runs import SCORERS, STEPS, TASKS, toy_run_config
from tests.helpers.terminal import terminal
from tests.training.helpers import read_scalars

pytestmark = [
    pytest.mark.slow(start_first=True),
    pytest.mark.usefixtures('compile_quickly', 'commands_compile_quickly'),
]
RECORD_KEYS = {
    *('step', 'loss', 'balance_loss', 'learning_rate', 'gradient_norm', 'tokens_per_second'),
    *('tokens', 'total_tokens', 'train_time_s', 'effective_experts', 'max_expert_share'),
}
TASK_KEYS = {
    *('metric', 'before', 'after', 'best_constant', 'examples', 'loss_before', 'loss_after')
}
RESULT_KEYS = {
    *('tasks', 'average', 'parameters', 'wall_time_s', 'seed', 'versions', 'model', 'method'),
    *('steps', 'tokens', 'train_time_s', 'peak_memory_bytes', 'routing', 'adapter'),
    *('best_step', 'validation_loss', 'validation_curve'),
}


@pytest.fixture(scope='module')
def last_state(tiny_weights):
    """Function that returns the state in the newest checkpoint of a directory."""
    run = run_config(toy_run_config(tiny_weights))
    optimizer = make_optimizer(run.optimizer, run.training.steps)
    params = load_base(run.model, run.weights).params
    fresh = create_state(Decoder(run.model, run.adapter), optimizer, run.seed, params)

    def restore(workdir: pathlib.Path) -> TrainState:
        with Checkpoints(workdir / 'checkpoints', 2) as checkpoints:
            return checkpoints.restore_state(fresh)

    return restore


def test_config_is_kept(finished_workdir, tiny_weights):
    kept = read_config(finished_workdir / 'config.json')
    assert run_config(kept) == run_config(toy_run_config(tiny_weights))


def test_metrics(finished_workdir):
    lines = (finished_workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
    records = [json.loads(line) for line in lines]
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        assert record.keys() >= RECORD_KEYS
        by_task = {key: value for key, value in record.items() if key.startswith('loss/')}
        assert by_task.keys() <= {f'loss/{task}' for task in TASKS}
        assert min(by_task.values()) <= record['loss'] <= max(by_task.values())
        assert 1 <= record['effective_experts'] <= 4
        assert 1 / 4 <= record['max_expert_share'] <= 1
        assert record['tokens_per_second'] > 0
    totals = itertools.accumulate(record['tokens'] for record in records)
    assert [record['total_tokens'] for record in records] == list(totals)
    assert all(0 < record['tokens'] <= 2 * 96 for record in records)
    # Warm-up takes 0.1 · 6 steps, rounded to one; a cosine over five steps follows.
    rates = [record['learning_rate'] for record in records]
    np.testing.assert_allclose(rates[:2], 1e-2, rtol=1e-6)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert records[-1]['loss'] < records[0]['loss']


def test_results(finished_workdir, results):
    assert results.keys() >= RESULT_KEYS
    assert list(results['tasks']) == list(TASKS)
    for task in results['tasks'].values():
        assert task.keys() >= TASK_KEYS
        assert task['metric'] == 'exact_match'
        assert task['examples'] == 6
        assert 0 <= task['before'] <= 1 and 0 <= task['after'] <= 1
        assert 0 < task['loss_after'] < task['loss_before'] < 20
    chosen = [results[key] for key in ('best_step', 'validation_loss', 'validation_curve')]
    assert chosen == [None, None, []]
    assert results['tasks']['toy_copy']['best_constant'] == pytest.approx(1 / 6)
    # Three or more of six answers have the same parity.
    assert 1 / 2 <= results['tasks']['toy_reverse']['best_constant'] <= 1
    assert results['average'].keys() >= {'before', 'after'}
    for key, value in results['average'].items():
        assert value == pytest.approx(np.mean([t[key] for t in results['tasks'].values()]))
    assert results['seed'] == 0
    assert results['steps'] == STEPS
    assert results['method'] == 'malora'
    assert results['versions'].keys() >= {'python', 'jax', 'jaxlib', 'flax', 'optax', 'grain'}
    assert results['peak_memory_bytes'] > 10**7
    assert results['routing']['balance_loss'] >= 0.99
    assert results['parameters'].keys() >= {
        *('base', 'trainable', 'frozen_in_adapter', 'percent_of_base', 'percent_of_all'),
        'by_group',
    }


@pytest.mark.parametrize('when', ['before', 'after'])
def test_answers_are_kept_and_scored(finished_workdir, results, when):
    lines = (finished_workdir / f'answers_{when}.jsonl').read_text('utf-8').splitlines()
    answers = [Answer(**json.loads(line)) for line in lines]
    assert [answer.task for answer in answers] == [TASKS[0]] * 6 + [TASKS[1]] * 6
    for task in TASKS:
        mine = [answer for answer in answers if answer.task == task]
        scores = [SCORERS[task](a.answer, Example(a.question, a.expected, {})) for a in mine]
        assert [answer.score for answer in mine] == scores
        share = np.mean(scores)
        assert results['tasks'][task][when] == pytest.approx(share)
    # In the task in which any answer may be right, some answers are.
    assert 0 < share < 1


def test_scores_are_of_the_base_before_and_of_the_last_state_after(
    finished_workdir, tiny_weights, last_state
):
    """The answers are generated again, and differ before and after training."""
    setup = build_setup(run_config(toy_run_config(tiny_weights)))

    def answered(model: Decoder, variables) -> list[Answer]:
        generator = setup.generator(model)
        examinee = runner.EvalModel(generator, variables, setup.base.tokenizer, setup.template)
        return runner.answer_held_out(examinee, setup.splits, 'test')

    before, after = (
        [Answer(**row) for row in read_json_lines(finished_workdir / f'answers_{when}.jsonl')]
        for when in ('before', 'after')
    )
    assert before == answered(Decoder(setup.run.model), {'params': setup.base.params})
    variables = last_state(finished_workdir).variables(setup.base.params)
    assert after == answered(setup.model, variables)
    assert sum(a.answer != b.answer for a, b in zip(before, after, strict=True)) >= 6


def test_the_log_tells_step_loss_speed_and_the_loss_of_each_task(finished_run):
    workdir, stderr = finished_run
    expected = [f'train: step 0/{STEPS}, compiling…', f'train: step 0/{STEPS}']
    for record in read_json_lines(workdir / 'metrics.jsonl'):
        facts = [f'loss {record["loss"]:.3f}', f'{record["tokens_per_second"]:.0f} tokens/s']
        tasks = [f'{task} {record[f"loss/{task}"]:.2f}' for task in TASKS]
        expected.append(', '.join([f'train: step {record["step"]}/{STEPS}', *facts, *tasks]))
    assert [line for line in stderr.split('\n') if line.startswith('train')] == expected


def test_the_log_tells_how_many_questions_are_scored(finished_run):
    _, stderr = finished_run
    lines = [line for line in stderr.splitlines() if line.startswith('score ')]
    for when in ('before', 'after'):
        own = [line for line in lines if line.startswith(f'score {when}: question ')]
        assert lines[: len(own)] == own
        lines = lines[len(own) :]
        counts = [tuple(map(int, re.findall(r'\d+', line))) for line in own]
        assert counts == sorted(counts) and counts[0] == (0, 12) and counts[-1] == (12, 12)
        facts = [line.partition(', ')[2] for line in own]
        assert list(dict.fromkeys(facts)) == ['compiling…', *TASKS, '']
        middle = [count for (count, _), fact in zip(counts, facts, strict=True) if fact == TASKS[1]]
        assert middle[0] == 6 and middle[-1] == 12
    assert not lines


@pytest.mark.parametrize('columns', [80, 110])
def test_the_terminal_shows_the_loss_of_every_task(tiny_weights, tmp_path, columns, monkeypatch):
    """`terminal` checks that no line is too wide."""
    tasks = get_config().data.tasks
    config = toy_run_config(
        tiny_weights,
        data__tasks=tasks,
        data__sequence_length=512,
        data__batch_size=6,
        evaluation__max_new_tokens=64,
    )
    monkeypatch.setattr(progress, 'REDRAW_SECONDS', 0)  # Show all progress.
    with terminal(columns) as screen:
        training.train(config, tmp_path / 'run')
    bars = [frame[frame.index('train ') :] for frame in screen.frames if 'train ' in frame]
    assert bars[0].endswith(f'0/{STEPS}  compiling…')
    seen: dict[str, float] = {}
    for record in read_json_lines(tmp_path / 'run' / 'metrics.jsonl'):
        seen |= {task: record[f'loss/{task}'] for task in tasks if f'loss/{task}' in record}
        shown = next(bar for bar in bars if f' {record["step"]}/{STEPS} ' in bar)
        assert all(f'  {task} {loss:.2f}' in shown for task, loss in seen.items())
    assert seen.keys() == set(tasks)
    for when in ('before', 'after'):
        frames = [frame for frame in screen.frames if f'score {when} ' in frame]
        assert frames[0].endswith('0/36  compiling…')
        assert [task for task in tasks if any(frame.endswith(f'  {task}') for frame in frames)] == [
            *tasks
        ]
    lines = [line for line in screen.text.splitlines() if '█' in line]
    assert [line.partition(' █')[0] for line in lines] == ['train', 'score before', 'score after']


def test_plots_are_pictures(finished_workdir):
    for name in ('loss.png', 'scores.png', 'expert_load.png'):
        content = (finished_workdir / name).read_bytes()
        assert content.startswith(b'\x89PNG\r\n')
        assert len(content) > 5_000


def test_nothing_unfinished_is_left(finished_workdir):
    assert not [path for path in finished_workdir.rglob('*') if 'tmp' in path.name]
    assert sorted(path.name for path in (finished_workdir / 'checkpoints').iterdir()) == ['4', '6']
    assert list((finished_workdir / 'tensorboard').glob('events.*'))


def test_checkpoints_hold_no_base(finished_workdir, last_state):
    state = last_state(finished_workdir)
    assert int(state.step) == STEPS
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    on_disk = sum(
        path.stat().st_size for path in (finished_workdir / 'checkpoints' / '6').rglob('*.*')
    )
    assert on_disk < 1.5 * size + 200_000
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(leaf).all()


def test_the_adapter_has_learned_something(finished_workdir, last_state):
    state = last_state(finished_workdir)
    for linear in ('q', 'k', 'v'):
        assert np.abs(state.adapter['layers']['attention'][linear]['up']).max() > 1e-3


def test_running_a_finished_run_again_returns_its_results(
    finished_workdir, results, tiny_weights, capsys, monkeypatch
):
    monkeypatch.setattr(training.training_run, 'build_setup', None)  # Nothing is loaded.
    assert training.train(toy_run_config(tiny_weights), finished_workdir) == results
    assert 'is finished' in capsys.readouterr().out


@pytest.mark.parametrize(
    'change, field',
    [
        ({'seed': 1}, 'seed'),
        ({'optimizer__learning_rate': 0.5}, 'optimizer.learning_rate'),
        ({'data__tasks': ('toy_copy',)}, 'data.tasks'),
    ],
)
def test_another_config_in_the_same_directory_is_refused(
    finished_workdir, tiny_weights, change, field
):
    with pytest.raises(UserError) as caught:
        training.train(toy_run_config(tiny_weights, **change), finished_workdir)
    assert str(caught.value) == (
        f'{finished_workdir} holds a run with another {field}: resume that one with its own '
        'config, or choose another --workdir.'
    )


def test_a_run_from_before_a_field_had_its_default(
    finished_workdir, results, tiny_weights, tmp_path
):
    shutil.copytree(finished_workdir, tmp_path / 'older')
    path = tmp_path / 'older' / 'config.json'
    config = json.loads(path.read_text())
    del config['training']['start_from'], config['model']['quantize'], config['data']['sources']
    path.write_text(json.dumps(config))
    assert training.train(toy_run_config(tiny_weights), tmp_path / 'older') == results
    with pytest.raises(UserError, match=r'holds a run with another training\.start_from'):
        training.train(
            toy_run_config(tiny_weights, training__start_from='mine'), tmp_path / 'older'
        )


def test_a_config_that_lacks_a_field_of_the_run_is_refused(finished_workdir, tiny_weights):
    config = toy_run_config(tiny_weights)
    del config['data']['weights']
    with pytest.raises(UserError, match=r'holds a run with fields .* lacks \(data.weights\)'):
        training.train(config, finished_workdir)


@pytest.fixture(scope='module')
def resumed(tiny_weights, tmp_path_factory) -> pathlib.Path:
    """Directory of a run that was killed while it wrote the last step's record, then resumed."""
    workdir = tmp_path_factory.mktemp('resumed') / 'run'
    command = [sys.executable, '-m', 'tests.helpers.runs', tiny_weights, workdir, str(STEPS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (workdir / 'results.json').exists()
    cut = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
    assert len(cut) == STEPS and cut[-1].endswith('"lo')
    training.train(toy_run_config(tiny_weights), workdir)
    return workdir


def test_killed_and_resumed_equals_uninterrupted(finished_workdir, results, resumed, last_state):
    records = read_json_lines(resumed / 'metrics.jsonl')
    assert without_times(records) == without_times(
        read_json_lines(finished_workdir / 'metrics.jsonl')
    )
    assert json.loads((resumed / 'results.json').read_text('utf-8'))['tasks'] == results['tasks']
    leaves, whole = (
        trees.named_leaves(last_state(workdir)) for workdir in (resumed, finished_workdir)
    )
    for (path, a), (_, b) in zip(leaves, whole, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_tensorboard_shows_every_step_of_a_run_that_was_killed(resumed):
    records = read_json_lines(resumed / 'metrics.jsonl')
    assert read_scalars(resumed) == {
        record.pop('step'): {tag: pytest.approx(value) for tag, value in record.items()}
        for record in records
    }


def test_a_loss_that_is_not_finite_stops_the_run(tiny_weights, tmp_path):
    config = toy_run_config(tiny_weights, optimizer__learning_rate=1e30)
    with pytest.raises(FloatingPointError) as caught:
        training.train(config, tmp_path)
    assert 'at step 2' in str(caught.value)
    assert 'Lower optimizer.learning_rate' in str(caught.value)
    assert [record['step'] for record in read_json_lines(tmp_path / 'metrics.jsonl')] == [1]
    assert not (tmp_path / 'results.json').exists()
    # The checkpoint after step 2 was due, but not made.
    assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))


def test_lora_has_no_routing(tiny_weights, tmp_path):
    config = toy_run_config(tiny_weights, 'lora', training__steps=1)
    results = training.train(config, tmp_path, write_run_plots)
    assert results['routing'] == {}
    assert (tmp_path / 'loss.png').exists()
    assert not (tmp_path / 'expert_load.png').exists()
    assert all(r['balance_loss'] == 0 for r in read_json_lines(tmp_path / 'metrics.jsonl'))
