"""Stored results: the records behind every measured number and picture of the documentation.

A record is a JSON file in `docs/results` with these keys:

    command   the command that measured, or a list of commands
    commit    abbreviated commit of the code that ran; null if it was not noted
    date      day of the measurement, YYYY-MM-DD; null if it was not noted
    machine   processor and number of cores
    versions  versions of the packages that matter
    seeds     seeds of the runs
    values    the measurements
    transcribed  true if the raw output was not kept and `values` repeats published numbers

To replace a record, measure again and store the output:

    python -m docs.records NAME OUTPUT.json --command='python -m experiments.benchmark …'
"""

import argparse
import datetime
import functools
import json
import pathlib
import subprocess
from typing import Any

from malora_jax import files
from malora_jax.analysis.conditions import name_seeds
from malora_jax.benchmark.machine import machine

RESULTS = pathlib.Path(__file__).resolve().parent / 'results'


@functools.cache
def load(name: str) -> dict[str, Any]:
    """Return a record.

    Args:
        name: Name of the file in `docs/results` without its suffix.
    """
    return json.loads((RESULTS / f'{name}.json').read_text('utf-8'))


def names() -> list[str]:
    """Return the names of all records. Other JSON files in the directory hold lists."""
    return sorted(p.stem for p in RESULTS.glob('*.json') if isinstance(load(p.stem), dict))


def conditions(name: str) -> str:
    """Return a sentence on how a record was measured, in Markdown.

    Args:
        name: Name of the record.
    """
    record = load(name)
    parts = [record['machine']]
    parts += [f'{package} {version}' for package, version in record['versions'].items()]
    if record['seeds']:
        parts.append(name_seeds(record['seeds']))
    if record['commit']:
        parts.append(f'commit {record["commit"]}')
    if record['date']:
        parts.append(record['date'])
    text = f'*Measured on {"; ".join(parts)}.'
    if record.get('transcribed'):
        text += ' The raw output was not kept.'
    return f'{text}*'


def store(name: str, output: pathlib.Path, command: str, seeds: list[int]) -> None:
    """Store the output of a command as a record of this machine and commit.

    Args:
        name: Name of the record.
        output: JSON file that the command wrote.
        command: The command.
        seeds: Seeds of the measured runs.
    """
    git = ['git', 'rev-parse', '--short', 'HEAD']
    commit = subprocess.run(git, cwd=RESULTS, capture_output=True, text=True, check=True)
    found = machine()
    record = {
        'command': command,
        'commit': commit.stdout.strip(),
        'date': datetime.date.today().isoformat(),
        'machine': f'{found["cores"]} cores of an {found["processor"]}',
        'versions': {'JAX': found['versions']['jax']},
        'seeds': seeds,
        'values': json.loads(output.read_text('utf-8')),
    }
    files.write_json(RESULTS / f'{name}.json', record)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Store the output of a command as a record.')
    parser.add_argument('name', help='Name of the record.')
    parser.add_argument('output', type=pathlib.Path, help='JSON file that the command wrote.')
    parser.add_argument('--command', required=True, help='The command.')
    parser.add_argument('--seeds', type=int, nargs='*', default=[0], help='Seeds of the runs.')
    arguments = parser.parse_args()
    store(arguments.name, arguments.output, arguments.command, arguments.seeds)
