"""The analyze command, as a user calls it."""

import pathlib

import pytest

from malora_jax import training
from tests.experiments.helpers import run, run_with_mistake
from tests.helpers.runs import toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, compile_quickly) -> pathlib.Path:
    """Directory of a short run on tasks that every process can load."""
    home = tmp_path_factory.mktemp('home')
    write_tiny_gguf(home / 'tiny.gguf')
    changes = {
        'data__tasks': ('chain_sum', 'number_filtering'),
        'data__sequence_length': 256,
        'evaluation__max_new_tokens': 32,
        'training__steps': 2,
    }
    training.train(toy_run_config(home / 'tiny.gguf', 'molora', **changes), home / 'run')
    return home / 'run'


def test_it_writes_the_report_into_the_run(workdir):
    done = run('analyze', f'--workdir={workdir}', '--questions=2', timeout=400)
    assert done.returncode == 0, done.stderr
    page = workdir / 'analysis' / 'report.html'
    assert done.stdout.endswith(f'\n{page}: {page.stat().st_size / 1e6:.1f} MB.\n')
    assert '| run | ' in done.stdout  # The run's row in the table of scores.
    text = page.read_text('utf-8')
    assert 'Routing of run' in text and 'experts within run' in text


def test_mistakes_are_one_line(workdir, tmp_path):
    assert run_with_mistake('analyze', f'--workdir={tmp_path}', f'--output={tmp_path / "out"}') == (
        f'{tmp_path} holds no run: there is no {tmp_path}/config.json, and no directory in it has '
        'results.json.'
    )
    assert run_with_mistake('analyze', f'--workdir={workdir}', '--questions=-1') == (
        '--questions is -1; it must be at least 0.'
    )
    assert (
        run_with_mistake('analyze', '--workdir=') == '--workdir is empty; it must name a directory.'
    )
    assert not (tmp_path / 'out').exists()
