"""The suite for an accelerator, with the tiny shapes that it has without one."""

import json
import os
import subprocess
import sys

import pytest

from malora_jax.benchmark import accelerator_suite
from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('commands_compile_quickly')]


def test_the_command_on_a_cpu(tmp_path):
    output = tmp_path / 'suite.json'
    flags = ['--config=configs/quickstart.py', '--suite=accelerator', '--rounds=2']
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.benchmark', *flags, f'--output={output}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert [(each['backend'], each['dtype']) for each in found['attention']] == [
        *(('xla', 'float32'), ('xla', 'bfloat16')),
        *(('splash', 'float32'), ('splash', 'bfloat16')),
        *(('triton', 'float32'), ('triton', 'bfloat16')),
    ]
    for each in found['attention']:
        assert 0 < max(each[name] for name in ('value', 'dq', 'dk', 'dv')) < each['tolerance']
        assert each['passed']
    assert found['peak_flops_per_s'] is None
    assert [(case['method'], case['rows'], case['sequence_length']) for case in found['cases']] == [
        ('lora', 4, 32),
        ('lora', 1, 128),
        ('malora', 4, 32),
        ('malora', 1, 128),
    ]
    for case in found['cases']:
        assert case['tokens_per_s'] == pytest.approx(128 / case['step_s'])
        assert min(case[key] for key in ('flops_per_s', 'compile_s', 'compiled_bytes')) > 0
        assert case['attention'] == 'xla'
        assert case['planned_bytes'] is case['peak_bytes'] is case['mfu'] is None
    assert output.with_suffix('.md').read_text().strip() in done.stdout


def test_the_tables():
    errors = {
        'value': 2e-3,
        'dq': 3e-3,
        'dk': 4e-3,
        'dv': 5.2e-3,
        'tolerance': 0.02,
        'passed': True,
    }
    measured = {
        'method': 'lora',
        'rows': 4,
        'sequence_length': 2048,
        'planned_bytes': 2e9,
        'compiled_bytes': 2.1e9,
        'peak_bytes': None,
        'attention': 'triton',
        'tokens_per_s': 12473.0,
        'mfu': 0.4126,
        'step_s': 0.6568,
        'compile_s': 61.2,
    }
    failed = {'method': 'malora', 'rows': 1, 'sequence_length': 8192, 'planned_bytes': None}
    check = {'backend': 'triton', 'dtype': 'bfloat16', 'head_width': 128} | errors
    broken = {'backend': 'splash', 'dtype': 'float32', 'error': 'ValueError: No.'}
    cases = [measured, failed | {'error': 'Out of memory.'}]
    text = accelerator_suite.format_tables({'attention': [check, broken], 'cases': cases})
    assert [line for line in text.splitlines() if '---' not in line][1:] == [
        '| triton | bfloat16 | 128 | 2.0e-03 | 3.0e-03 | 4.0e-03 | 5.2e-03 | 2.0e-02 | yes |',
        '| splash | float32 | – | – | – | – | – | – | no |',
        '',
        '|  | rows | attention | tokens/s | MFU | planned GB | compiled GB | peak GB | step, s '
        '| compile, s |',
        '| lora | 4 × 2048 | triton | 12,473 | 41.3% | 2.00 | 2.10 | – | 0.657 | 61 |',
        '| malora | 1 × 8192 | – | – | – | – | – | – | – | – |',
        '',
        'splash, float32: ValueError: No.',
        '',
        'malora, 1 × 8192: Out of memory.',
    ]


def exit_early() -> dict:
    os._exit(1)


def test_a_failure_does_not_end_the_suite():
    found = accelerator_suite._try_in_new_process(os.listdir, '/missing')
    assert found == {'error': "FileNotFoundError: [Errno 2] No such file or directory: '/missing'"}
    found = accelerator_suite._try_in_new_process(exit_early)
    assert found['error'].startswith('BrokenProcessPool: ')


def test_small_cards_get_a_small_model():
    assert accelerator_suite._shapes('gpu', 'l4').model == 'llama3.2-1b'
    for gpu in ('h100', None):
        assert accelerator_suite._shapes('gpu', gpu).model == 'llama3.1-8b'
