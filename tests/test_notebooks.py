"""Notebooks run from top to bottom, with the tiny model and few steps."""

import json
import os
import pathlib
import shutil

import nbclient
import nbformat
import numpy as np
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)

# Small settings, with tasks whose questions are short even as byte-like tokens.
SMALL = {
    'model.name': 'tiny',
    'adapter.dropout': 0.0,
    'data.held_out': 4,
    'data.max_per_task': 40,
    'data.batch_size': 2,
    'optimizer.learning_rate': 1e-2,
}
PARAMETERS = {
    'quickstart': {
        'SETTINGS': {
            'data.tasks': ('chain_sum', 'number_filtering'),
            'data.sequence_length': 256,
            'training.steps': 12,
            'training.checkpoint_every': 6,
        },
    },
    'your_own_tasks': {
        'SETTINGS': {
            'data.sequence_length': 160,
            'data.validation': 4,
            'training.steps': 12,
            'training.evaluate_every': 6,
            'training.checkpoint_every': 6,
        },
        'ROWS': 60,
    },
    'paper_figures': {
        'SETTINGS': {
            # For the sweeps; the other runs have tasks of their own.
            'data.tasks': ('chain_sum', 'number_filtering'),
            'data.sequence_length': 256,
            'training.checkpoint_every': 6,
        },
        'STEPS': 12,
        'SWEEP_STEPS': 3,
        'RANKS': (4, 8),
        'EXPERTS': (4, 8),
        'ROUNDS': 2,
    },
}
# Number of runs and of images that each notebook makes.
MADE = {'quickstart': (1, 2), 'your_own_tasks': (1, 2), 'paper_figures': (12, 5)}


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> pathlib.Path:
    """Copy of the code as in a clone, so that the notebooks write nowhere else."""
    home = tmp_path_factory.mktemp('clone')
    for name in ('malora_jax', 'configs', 'experiments', 'notebooks'):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'requirements-quickstart.txt'):
        shutil.copy(ROOT / name, home)
    write_tiny_gguf(home / 'tiny.gguf')
    return home


def with_parameters(book: nbformat.NotebookNode, values: dict) -> None:
    """Insert assignments after the cell tagged "parameters", as papermill does."""
    (number,) = [i for i, c in enumerate(book.cells) if 'parameters' in c.metadata.get('tags', ())]
    given = '\n'.join(f'{name} = {value!r}' for name, value in values.items())
    book.cells.insert(number + 1, nbformat.v4.new_code_cell(given))


def assert_loss_falls(metrics: pathlib.Path) -> None:
    """Check that the mean loss of the last quarter of the steps is below that of the first."""
    losses = [json.loads(line)['loss'] for line in metrics.open(encoding='utf-8')]
    quarter = max(1, len(losses) // 4)
    assert np.mean(losses[-quarter:]) < np.mean(losses[:quarter]), metrics


@pytest.mark.parametrize('name', PARAMETERS)
@pytest.mark.usefixtures('commands_compile_quickly')
def test_it_runs_and_its_losses_fall(name, home, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(home), os.environ.get('PYTHONPATH', '')]))
    book = nbformat.read(home / 'notebooks' / f'{name}.ipynb', as_version=4)
    values = PARAMETERS[name]
    settings = SMALL | {'model.weights': str(home / 'tiny.gguf')} | values['SETTINGS']
    with_parameters(book, values | {'SETTINGS': settings, 'WORKDIR': f'runs/{name}'})
    nbclient.NotebookClient(
        book, timeout=600, resources={'metadata': {'path': str(home / 'notebooks')}}
    ).execute()
    metrics = sorted((home / 'runs' / name).rglob('metrics.jsonl'))
    for path in metrics:
        if 'sweep' not in str(path.relative_to(home)):  # A sweep's runs have too few steps.
            assert_loss_falls(path)
    pictures = [
        output
        for cell in book.cells
        for output in cell.get('outputs', ())
        if 'image/png' in output.get('data', {})
    ]
    assert (len(metrics), len(pictures)) == MADE[name]


@pytest.mark.parametrize('name', PARAMETERS)
def test_what_it_printed_is_saved(name):
    """Every cell was run once, in order and without an error; images and times are saved."""
    book = nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all('execution' in cell.metadata for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == 'error' for output in outputs)
    pictures = sum('image/png' in output.get('data', {}) for output in outputs)
    assert pictures == MADE[name][1]
