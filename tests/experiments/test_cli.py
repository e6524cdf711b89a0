"""The command line as users see it: an error is one line on stderr, with status 2."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from malora_jax.training.results import format_evaluation, format_table
from tests.experiments.helpers import run, run_with_mistake, small_run_arguments
from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)

QUICKSTART = '--config=configs/quickstart.py'
# A run that needs little preparation before it loads its weights.
SMALL = (
    QUICKSTART,
    '--config.model.name=tiny',
    "--config.data.tasks=('chain_sum',)",
    '--config.data.max_per_task=10',
)


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (
            [f'{QUICKSTART}:malorra'],
            ["Unknown method 'malorra': did you mean malora", 'molora'],
        ),
        ([QUICKSTART, '--config.adapter.rnak=3'], ['rnak', 'rank']),
        (
            [QUICKSTART, '--config.adapter.top_k=9'],
            ['adapter.top_k is 9; it must be at most num_experts = 8.'],
        ),
        ([QUICKSTART, '--config.adapter.rank=0'], ['adapter.rank is 0; it must be at least 1.']),
        (
            [QUICKSTART, '--config.adapter.shared_rank=600'],
            ['adapter.shared_rank is 600; it must be at most 576, the input width of '],
        ),
        (
            [QUICKSTART, '--config.model.name=lama2-7b'],
            ["Unknown model 'lama2-7b': did you mean llama2-7b"],
        ),
        ([QUICKSTART, '--config.training.steps=many'], ['training.steps', 'many']),
        ([QUICKSTART, '--confg.seed=1'], ['confg']),
        (
            [QUICKSTART, 'seed=1', 'fast'],
            ['Unexpected arguments: seed=1 fast; write flags as --flag=value.'],
        ),
        ([], ['--config is required, such as --config=configs/quickstart.py.']),
        (['--config=configs/quikstart.py'], ['--config: there is no file configs/quikstart.py']),
        (
            ['--config=configs/quikstart.py', '--config.seed=1'],
            ["--config: [Errno 2] No such file or directory: 'configs/quikstart.py' (from /"],
        ),
        (
            ['--config=README.md', '--config.seed=1'],
            ['--config: the file is not valid Python: ', 'README.md'],
        ),
        (
            [QUICKSTART, '--config.model=tiny'],
            ['config.model has fields: set each as --config.model.FIELD=VALUE.'],
        ),
        (
            [QUICKSTART, '--config.method=lora'],
            ['config.method cannot be overridden: write --config=configs/quickstart.py:lora.'],
        ),
    ],
    ids=[
        *('method', 'field', 'top_k', 'rank', 'shared_rank', 'model', 'type', 'flag', 'words'),
        *('no_config', 'wrong_path', 'wrong_path_with_override', 'no_python', 'section'),
        'method_overridden',
    ],
)
def test_mistakes_in_a_plan(arguments, expected):
    line = run_with_mistake('plan', *arguments)
    for part in expected:
        assert part in line


@pytest.mark.parametrize('flag', ['config', 'flagfile'])
def test_files_of_flags_that_cannot_be_read(flag, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    expected = f'--{flag}: {tmp_path / "pipe"} is not a regular file.'
    assert run_with_mistake('plan', QUICKSTART, f'--{flag}={tmp_path / "pipe"}') == expected
    assert str(tmp_path / 'none') in run_with_mistake(
        'plan', QUICKSTART, f'--flagfile={tmp_path / "none"}'
    )


def test_a_line_break_in_a_flag_does_not_break_the_line(tmp_path):
    line = run_with_mistake('evaluate', *SMALL, f'--workdir={tmp_path}/a\nb')
    assert line.startswith(f'{tmp_path}/a b holds no run: ')


@pytest.mark.parametrize(
    'command, arguments, expected',
    [
        ('train', ['--workdir='], '--workdir is empty; it must name a directory.'),
        ('evaluate', ['--workdir='], '--workdir is empty; it must name a directory.'),
        ('sweep', ['--workdir='], '--workdir is empty; it must name a directory.'),
        ('export', ['--workdir=', '--output=out'], '--workdir is empty; it must name a directory.'),
        ('generate', ['--workdir='], '--workdir is empty; it must name a directory.'),
        ('analyze', ['--workdir='], '--workdir is empty; it must name a directory.'),
    ],
)
def test_an_empty_workdir(command, arguments, expected):
    config = {'train': SMALL, 'evaluate': SMALL, 'sweep': ['--config=configs/sweeps/rank.py']}
    assert run_with_mistake(command, *config.get(command, ()), *arguments) == expected


def test_unknown_task(tmp_path):
    line = run_with_mistake(
        'train', *SMALL, "--config.data.tasks=('chain_sun',)", f'--workdir={tmp_path / "run"}'
    )
    assert line.startswith("Unknown task in data.tasks 'chain_sun': did you mean chain_sum or ")


def test_missing_weights(tmp_path):
    path = tmp_path / 'none.gguf'
    line = run_with_mistake(
        'train', *SMALL, f'--config.model.weights={path}', f'--workdir={tmp_path / "run"}'
    )
    assert line == f'There is no weight file {path}.'


def test_truncated_weights(tmp_path):
    path = tmp_path / 'cut.gguf'
    write_tiny_gguf(path)
    path.write_bytes(path.read_bytes()[:-1000])
    line = run_with_mistake(
        'train', *SMALL, f'--config.model.weights={path}', f'--workdir={tmp_path / "run"}'
    )
    assert line.startswith(f'{path} is not a complete GGUF file (')
    assert line.endswith('; download it again.')


def test_train_needs_a_workdir():
    assert 'workdir' in run_with_mistake('train', QUICKSTART)


@pytest.mark.parametrize('command', ['plan', 'train'])
def test_help_shows_an_example(command):
    done = run(command, '--help')
    assert 'Traceback' not in done.stderr
    assert f'python -m experiments.{command} --config=configs/quickstart.py' in done.stdout
    assert '\n  --config: ' in done.stdout


def test_help_says_how_to_list_and_override_the_fields_of_a_config():
    done = run('plan', '--help')
    purpose, config = done.stdout.split('\n\n')[:2]
    assert purpose.count('\n') == 0
    assert '--config.SECTION.FIELD=VALUE' in config and 'print(get_config())' in config


def test_help_lists_the_flags_that_commands_share():
    assert '\n  --weights: ' in run('export', '--help').stdout


def test_garbage_is_collected_after_the_imports(tmp_path):
    """Commands load without collections, which must not stay off; what is loaded is exempt."""
    config = tmp_path / 'collections.py'
    config.write_text(
        'import gc\n'
        'def get_config():\n'
        '    raise ValueError(f"collects: {gc.isenabled()}, exempt: {gc.get_freeze_count()}")\n'
    )
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.plan', f'--config={config}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    collects, exempt = re.search(r'collects: (\w+), exempt: (\d+)', done.stderr).groups()
    assert collects == 'True' and int(exempt) > 100_000


def test_train_prints_the_table_and_evaluate_finds_the_same_scores(tmp_path):
    weights, workdir = tmp_path / 'tiny.gguf', tmp_path / 'run'
    write_tiny_gguf(weights)
    arguments = (
        *SMALL,
        f'--config.model.weights={weights}',
        f'--workdir={workdir}',
        '--config.data.held_out=4',
        '--config.data.sequence_length=256',
        '--config.data.batch_size=1',
        '--config.training.steps=2',
    )
    done = run('train', *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((workdir / 'results.json').read_text('utf-8'))
    assert results['steps'] == 2
    told = (
        f'{format_table(results)}\n'
        f'The results are in {workdir}. Next, chat with the model, or write a report:\n'
        f'  python -m experiments.generate --workdir={workdir}\n'
        f'  python -m experiments.analyze --workdir={workdir}\n'
    )
    assert done.stdout.endswith(told)
    assert 'Traceback' not in done.stderr

    again = run('train', *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f'{workdir} is finished; its results:\n{told}'

    done = run('evaluate', *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f'{format_evaluation(json.loads(done.stdout), "malora on tiny")}\n')
    after = results['tasks']['chain_sum']
    task = {
        **{'metric': 'exact_match', 'score': after['after'], 'interval': after['after_interval']},
        **{'more': {}, 'loss': after['loss_after'], 'examples': 4, 'scoring': after['scoring']},
    }
    assert json.loads(done.stdout) == {
        'step': 2,
        'tasks': {'chain_sum': task},
        'average': results['average']['after'],
        'average_interval': results['average_interval']['after'],
    }


def test_plan_prints_one_json_object():
    done = run('plan', f'{QUICKSTART}:malora', '--config.model.name=llama2-7b')
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan['model'] == 'llama2-7b'
    assert plan['parameters']['trainable'] == 158_859_264


def test_sigterm_while_answers_are_written_ends_with_status_0(tmp_path):
    """A computation is still running then, which could crash the interpreter's exit."""
    write_tiny_gguf(tmp_path / 'tiny.gguf')
    arguments = [*small_run_arguments(tmp_path / 'tiny.gguf'), f'--workdir={tmp_path / "run"}']
    with subprocess.Popen(
        [sys.executable, '-m', 'experiments.train', *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        shown = b''
        while b'score before' not in shown:
            shown += process.stderr.read1()
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b'Stopped by SIGTERM' in told
    assert (tmp_path / 'run' / 'checkpoints' / '3').is_dir()
