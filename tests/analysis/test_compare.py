"""The table and curves of several runs, from directories as a run leaves them."""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from malora_jax.analysis.compare import compare, read_runs
from matplotlib.figure import Figure

from malora_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def write_run(
    directory: pathlib.Path,
    loss_after: float,
    validated: bool = True,
    question: str = 'Why?',
    model: str = 'tiny',
    template: str = 'plain',
    tasks: str = 'ab',
    scoring: Mapping[str, Any] | None = None,
) -> None:
    directory.mkdir(parents=True)
    losses = {'loss_before': 4.0, 'loss_after': loss_after}
    task = losses | {'scoring': scoring or {}, 'before': 0.1, 'after': 0.75}
    task |= {'examples': 1, 'metric': 'exact_match'}
    config = {
        'seed': 0,
        'method': 'lora',
        'model': {'name': model, 'weights': ''},
        'data': {'template': template},
    }
    (directory / 'config.json').write_text(json.dumps(config))
    said = {'question': question, 'expected': 'x', 'answer': str(loss_after)}
    numbers = {'score': 1.0, 'nats': 1.0, 'tokens': 1}
    answers = [{'task': name} | said | numbers for name in tasks]
    for when in ('before', 'after'):
        (directory / f'answers_{when}.jsonl').write_text(
            ''.join(f'{json.dumps(answer)}\n' for answer in answers)
        )
    results = {
        'tasks': {name: task | {'loss_before': 4.0 + 2 * (name == 'b')} for name in tasks},
        'average': {'before': 0.125, 'after': 0.75},
        'parameters': {'trainable': 1234567},
        'steps': 4,
        'train_time_s': 10.0,
    }
    (directory / 'results.json').write_text(json.dumps(results))
    records = [{'step': step, 'loss': 5.0 - step} for step in (1, 2, 3, 4)]
    for record in records[1::2] if validated else []:
        record['validation_loss'] = loss_after + 1 / record['step']
    lines = ''.join(f'{json.dumps(record)}\n' for record in records)
    (directory / 'metrics.jsonl').write_text(lines)


def test_the_table_has_a_row_for_each_run_best_first(tmp_path):
    write_run(tmp_path / 'runs' / 'lora', 2.0)
    write_run(tmp_path / 'runs' / 'malora', 1.5)
    (tmp_path / 'runs' / 'unfinished').mkdir()
    table = compare(tmp_path / 'runs', tmp_path / 'out')
    assert table.splitlines()[2:] == [
        '| `malora` | 1,234,567 | 5.000 | 1.500 | 12.5 | 75.0 | 2.50 |',
        '| `lora` | 1,234,567 | 5.000 | 2.000 | 12.5 | 75.0 | 2.50 |',
    ]
    assert {line.count('|') for line in table.splitlines()} == {8}
    assert (tmp_path / 'out' / 'comparison.md').read_text() == table + '\n'
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'comparison.md',
        'comparison.png',
    ]


def test_a_run_has_a_panel_with_its_own_curve_on_the_others(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: _keep(figures, figure, path))
    for number in range(4):
        write_run(tmp_path / 'runs' / f'run{number}', 1.0 + number)
    compare(tmp_path / 'runs', tmp_path / 'out')
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ['run0', 'run1', 'run2', 'run3', '', '']
    assert [panel.axison for panel in panels] == [True] * 4 + [False] * 2
    np.testing.assert_allclose(panels[2].lines[-1].get_xydata(), [[2, 3.5], [4, 3.25]])
    assert len(panels[2].lines) == 5
    assert figures[0].get_supylabel() == 'validation loss (nats per token)'


def _keep(figures, figure, path):
    figures.append(figure)
    pathlib.Path(path).write_bytes(b'png')


def test_where_one_run_was_not_validated_the_training_losses_are_shown(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: _keep(figures, figure, path))
    write_run(tmp_path / 'runs' / 'lora', 2.0, validated=False)
    write_run(tmp_path / 'runs' / 'malora', 3.0)
    compare(tmp_path / 'runs', tmp_path / 'out')
    assert figures[0].get_supylabel() == 'loss (nats per token)'
    for panel in figures[0].axes[:2]:
        np.testing.assert_allclose(panel.lines[-1].get_xydata(), [[1, 4], [2, 3], [3, 2], [4, 1]])


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ({'question': 'How?'}, 'The runs lora and malora in {} differ in their held-out questions'),
        ({'model': 'large'}, 'The runs lora and malora in {} differ in their model'),
        ({'template': 'chatml'}, 'The runs lora and malora in {} differ in their template'),
        ({'tasks': 'a'}, 'The runs malora and lora in {} differ in their tasks'),
        ({'scoring': {'shots': 8}}, 'The runs lora and malora in {} differ in their scoring of a'),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, other, message):
    write_run(tmp_path / 'lora', 2.0, scoring={'shots': 0})
    write_run(tmp_path / 'malora', 1.5, **({'scoring': {'shots': 0}} | other))
    with pytest.raises(UserError, match=re.escape(message.format(tmp_path))):
        compare(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_how_programs_are_confined_makes_no_difference(tmp_path):
    write_run(tmp_path / 'lora', 2.0, scoring={'shots': 0, 'sandbox': {'network': True}})
    write_run(tmp_path / 'malora', 1.5, scoring={'shots': 0, 'sandbox': {'network': False}})
    assert len(read_runs(tmp_path)) == 2


def test_runs_of_other_tasks_can_be_read_together(tmp_path):
    """What they share is comparable."""
    write_run(tmp_path / 'lora', 2.0, scoring={'shots': 0})
    write_run(tmp_path / 'lora-b', 1.5, scoring={'shots': 0}, tasks='b')
    assert [run.name for run in read_runs(tmp_path)] == ['lora-b', 'lora']


def test_what_is_no_whole_run_is_refused(tmp_path):
    write_run(tmp_path / 'lora', 2.0)
    (tmp_path / 'lora' / 'results.json').write_text('{"tasks": {}}')
    with pytest.raises(
        UserError, match=r'/results\.json: average is missing: restore it from a copy'
    ):
        read_runs(tmp_path)
    (tmp_path / 'lora' / 'config.json').unlink()
    with pytest.raises(UserError, match=r'lora is no whole run: \S+/lora/config\.json is missing'):
        read_runs(tmp_path)


def test_the_command_says_that_there_is_no_run(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.compare', f'--workdirs={tmp_path}', '--output=out'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f'{tmp_path} holds no finished run: no directory in it has results.json.\n'
    )
