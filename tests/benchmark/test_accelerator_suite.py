"""The suite for an accelerator, with the tiny shapes that it has without one."""

import json
import subprocess
import sys

import pytest

from malora_jax.benchmark import accelerator_suite
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

# Runs the command with another test than that of the attention kernels, which takes long.
COMMAND = """
import pathlib, sys
from experiments import benchmark, cli
benchmark._ATTENTION_TEST = pathlib.Path(sys.argv.pop(1))
cli.run(benchmark.main)
"""


def test_the_command_on_a_cpu(tmp_path):
    output, test = tmp_path / 'suite.json', tmp_path / 'test_nothing.py'
    test.write_text('def test_nothing():\n    pass\n')
    flags = ['--config=configs/quickstart.py', '--suite=accelerator', '--rounds=2']
    done = subprocess.run(
        [sys.executable, '-c', COMMAND, str(test), *flags, f'--output={output}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found['attention'].startswith('1 passed') and found['peak_flops_per_s'] is None
    assert [(case['method'], case['rows'], case['sequence_length']) for case in found['cases']] == [
        ('lora', 4, 32),
        ('lora', 1, 128),
        ('malora', 4, 32),
        ('malora', 1, 128),
    ]
    for case in found['cases']:
        assert case['tokens_per_s'] == pytest.approx(128 / case['step_s'])
        assert min(case[key] for key in ('flops_per_s', 'compile_s', 'compiled_bytes')) > 0
        assert case['planned_bytes'] is case['peak_bytes'] is case['mfu'] is None
    assert output.with_suffix('.md').read_text().strip() in done.stdout


def test_the_table():
    measured = {
        'method': 'lora',
        'rows': 4,
        'sequence_length': 2048,
        'planned_bytes': 2e9,
        'compiled_bytes': 2.1e9,
        'peak_bytes': None,
        'tokens_per_s': 12473.0,
        'mfu': 0.4126,
        'step_s': 0.6568,
        'compile_s': 61.2,
    }
    failed = {'method': 'malora', 'rows': 1, 'sequence_length': 8192, 'planned_bytes': None}
    table = accelerator_suite.format_table([measured, failed | {'error': 'Out of memory.'}])
    assert table.splitlines()[2:] == [
        '| lora | 4 × 2048 | 12,473 | 41.3% | 2.00 | 2.10 | – | 0.657 | 61 |',
        '| malora | 1 × 8192 | – | – | – | – | – | – | – |',
        '',
        'malora, 8192 tokens: Out of memory.',
    ]
