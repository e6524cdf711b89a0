"""The export command, on a run of the tiny model."""

import json
import pathlib
import subprocess

import pytest

from tests.experiments.helpers import run, run_with_mistake, small_run_arguments
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
    home = tmp_path_factory.mktemp('home')
    write_tiny_gguf(home / 'tiny.gguf')
    done = run('train', *small_run_arguments(home / 'tiny.gguf'), f'--workdir={home / "run"}')
    assert done.returncode == 0, done.stderr
    return home / 'run'


def export(workdir: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run('export', f'--workdir={workdir}', *arguments)


def test_a_mixture_becomes_one_lora_and_that_goes_to_peft(workdir, tmp_path):
    found = tmp_path / 'static'
    done = export(workdir, '--format=static', '--task=chain_sum', '--rank=5', f'--output={found}')
    assert done.returncode == 0, done.stderr
    told = json.loads((found / 'manifest.json').read_text())['static']
    assert told['approximates'] == 'malora' and told['gates_of'] == ['chain_sum']
    assert told['rank'] == 5 < told['exact_rank']
    assert done.stdout.startswith('| held-out loss (nats per token) | base | malora | static |\n')
    for task, losses in told['held_out_loss'].items():
        row = ' | '.join(f'{losses[model]:.4f}' for model in ('base', 'mixture', 'static'))
        assert f'| {task} | {row} |' in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f'{found}: lora on tiny after 3 steps, ')
    # On a machine that stores the base model elsewhere.
    weights = tmp_path / 'elsewhere.gguf'
    write_tiny_gguf(weights)
    done = export(found, '--format=peft', f'--weights={weights}', f'--output={tmp_path / "peft"}')
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())['r'] == 5
    assert run_with_mistake(
        'export', f'--workdir={found}', '--format=static', f'--output={tmp_path / "again"}'
    ) == (
        f'{found} is an exported adapter; --format=static needs the directory of the run, whose '
        'data it is measured on.'
    )
    assert 'exists already; choose a new directory' in run_with_mistake(
        'export', f'--workdir={workdir}', f'--output={found}'
    )
    assert run_with_mistake(
        'export', f'--workdir={workdir}', '--rank=2', f'--output={tmp_path / "again"}'
    ) == ('--task and --rank are for --format=static.')
    assert not (tmp_path / 'again').exists()


def test_a_run_that_has_not_ended_needs_a_word(workdir, tmp_path):
    results = workdir / 'results.json'
    content = results.read_bytes()
    results.unlink()
    try:
        line = run_with_mistake('export', f'--workdir={workdir}', f'--output={tmp_path / "out"}')
        assert line == (
            f'The run in {workdir} has not finished: there is no results.json. Resume it, or '
            'export it as it is with --unfinished.'
        )
        done = export(workdir, '--unfinished', f'--output={tmp_path / "out"}')
        assert done.returncode == 0, done.stderr
    finally:
        results.write_bytes(content)


def test_a_mixture_for_transformers_and_for_vllm(workdir, tmp_path):
    done = export(workdir, '--format=transformers', '--adapter_only', f'--output={tmp_path / "hf"}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'hf' / 'mixture.safetensors').exists()
    weights = workdir.parent / 'tiny.gguf'
    assert f'{weights} does not have the base weights of the training: export them ' in done.stdout
    done = export(workdir, '--format=adapter', f'--output={tmp_path / "adapter"}')
    assert done.returncode == 0, done.stderr
    # For vLLM, the base model is not needed.
    weights.rename(tmp_path / 'tiny.gguf')
    try:
        for source, name in ((workdir, 'vllm'), (tmp_path / 'adapter', 'again')):
            done = export(source, '--format=vllm', f'--output={tmp_path / name}')
            assert done.returncode == 0, done.stderr
            assert 'Warning' not in done.stderr
            assert done.stdout.startswith(f'{tmp_path / name}: malora on tiny after 3 steps, ')
    finally:
        (tmp_path / 'tiny.gguf').rename(weights)
    for file in ('adapter_model.safetensors', 'adapter_config.json'):
        assert (tmp_path / 'vllm' / file).read_bytes() == (tmp_path / 'again' / file).read_bytes()
    assert run_with_mistake(
        'export', f'--workdir={workdir}', '--adapter_only', f'--output={tmp_path / "no"}'
    ) == ('--adapter_only is for --format=transformers.')
