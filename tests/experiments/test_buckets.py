"""Commands on run directories in a bucket."""

import json
import subprocess

import pytest

from malora_jax import cloud_storage
from tests.experiments.helpers import run, run_with_mistake, small_run_arguments
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> list[str]:
    weights = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(weights)
    return small_run_arguments(weights)


@pytest.fixture(scope='module')
def workdir(bucket, settings) -> str:
    address = f'{bucket}/runs/commands'
    succeed('train', *settings, f'--workdir={address}')
    return address


def succeed(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def names(address: str) -> set[str]:
    return {path.name for path in cloud_storage.localize(address).iterdir()}


def test_a_run_is_there_and_its_command_again_shows_it(workdir, settings):
    assert names(workdir) >= {'config.json', 'metrics.jsonl', 'results.json', 'loss.png'}
    again = succeed('train', *settings, f'--workdir={workdir}')
    assert again.stdout.startswith(f'{workdir} is finished; its results:\n')


def test_it_is_scored_again_and_answers(workdir, settings, tmp_path):
    found = json.loads(succeed('evaluate', *settings, f'--workdir={workdir}').stdout)
    results = json.loads((cloud_storage.localize(workdir) / 'results.json').read_text('utf-8'))
    for name, task in results['tasks'].items():
        assert found['tasks'][name]['loss'] == pytest.approx(task['loss_after'], rel=1e-6)
    prompts = tmp_path / 'prompts.jsonl'
    prompts.write_text('{"prompt": "1 + 2"}\n')
    output = tmp_path / 'answers.jsonl'
    given = (f'--input={prompts}', f'--output={output}', '--max_new_tokens=4')
    succeed('generate', f'--workdir={workdir}', *given)
    assert 'answer' in json.loads(output.read_text('utf-8'))


def test_it_is_exported_into_the_bucket(workdir, bucket):
    output = f'{bucket}/exports/adapter'
    done = succeed('export', f'--workdir={workdir}', f'--output={output}')
    assert done.stdout.startswith(f'{output}: malora on tiny after 3 steps, ')
    assert names(output) == {'adapter.safetensors', 'manifest.json'}
    assert run_with_mistake('export', f'--workdir={workdir}', f'--output={output}') == (
        f'--output: {output} exists already; choose a new directory.'
    )


def test_runs_there_are_compared(workdir, bucket):
    runs = workdir.rsplit('/', 1)[0]
    succeed('analyze', f'--workdir={runs}', '--norouting', f'--output={bucket}/report')
    assert {'report.md', 'report.html', 'analysis.json'} <= names(f'{bucket}/report')


def test_a_directory_without_a_run(bucket):
    address = f'{bucket}/runs/none'
    assert run_with_mistake('generate', f'--workdir={address}') == (
        f'{address} holds no run: there is no {address}/config.json.'
    )
