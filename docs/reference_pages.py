"""Pages of the reference that are generated from the code: config fields and commands."""

import concurrent.futures
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from configs import common
from docs.repository import ROOT
from malora_jax.adapters import AdapterSettings
from malora_jax.commands import COMMANDS
from malora_jax.distributed.mesh import MeshConfig
from malora_jax.training import config as config_lib
from malora_jax.training.data_config import DataConfig
from malora_jax.training.training_config import TrainingConfig
from malora_jax.ultralink.stages import STAGES

SECTIONS = {
    'model': config_lib._ModelSection,
    'adapter': AdapterSettings,
    'data': DataConfig,
    'optimizer': config_lib.OptimizerConfig,
    'training': TrainingConfig,
    'evaluation': config_lib.EvaluationConfig,
    'mesh': MeshConfig,
}


def config_page() -> str:
    """Return the page on all config fields: defaults, and descriptions from the docstrings."""
    lines = [
        '# Config fields',
        '',
        'Every field can be overridden on the command line, for example',
        '`--config.adapter.rank=16` or `--config.data.max_per_task=1000`. *Default* is the value',
        'in `configs/common.py` with the method `malora`. A field without a default is set by each',
        'config.',
        '',
        '| field | default | meaning |',
        '|---|---|---|',
    ]
    described = attributes(config_lib.RunConfig)
    base = common.base_config('malora').to_dict()
    for name in ('seed', 'method'):
        lines.append(f'| `{name}` | `{base[name]!r}` | {described[name]} |')
    for section, kind in SECTIONS.items():
        lines += ['', f'## {section}', '', '| field | default | meaning |', '|---|---|---|']
        described = attributes(kind)
        for field in dataclasses.fields(kind):
            default = base[section].get(field.name, field.default)
            shown = '' if default is dataclasses.MISSING else f'`{default!r}`'
            lines.append(f'| `{section}.{field.name}` | {shown} | {described[field.name]} |')
    return '\n'.join(lines) + '\n'


def attributes(kind: Any) -> dict[str, str]:
    """Return the description of each attribute in a docstring, on one line.

    Raises:
        ValueError: A field of the dataclass is not described.
    """
    text = inspect.getdoc(kind) or ''
    part = re.split(r'\n(?=\w+:\n)', text.partition('Attributes:\n')[2])[0]
    found = {}
    for names, description in re.findall(
        r'^    ([\w, ]+): ((?:.*\n?)(?:        .*\n?|\n(?=        ))*)', part + '\n', re.MULTILINE
    ):
        for name in names.split(', '):
            found[name] = ' '.join(description.split()).replace('|', r'\|')
    missing = {field.name for field in dataclasses.fields(kind)} - set(found)
    if missing:
        raise ValueError(f'The docstring of {kind.__name__} lacks {", ".join(sorted(missing))}.')
    return found


def commands_page() -> str:
    """Return the page with the `--help` of every command."""
    # `harness` prints the help of another program, and each stage of `ultralink` has its own.
    modules = [name for name in COMMANDS if name not in ('harness', 'ultralink')]
    commands = [(f'experiments.{module}',) for module in modules]
    commands += [('experiments.ultralink', stage) for stage in STAGES]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = pool.map(help_text, commands)
    lines = [
        '# Commands',
        '',
        'Every command prints this text with `--help`. `experiments.harness` prints the help of',
        'the Evaluation Harness.',
        '',
    ]
    for command, text in zip(commands, texts, strict=True):
        title = ' '.join(command).removeprefix('experiments.')
        lines += [f'## {title}', '', '```text', text, '```', '']
    return '\n'.join(lines)


def help_text(command: Sequence[str]) -> str:
    """Return what `python -m COMMAND --help` prints, without the path of the script."""
    process = subprocess.run(
        [sys.executable, '-m', *command, '--help'], cwd=ROOT, capture_output=True, text=True
    )
    text = process.stdout.replace(str(ROOT) + '/', '')
    return '\n'.join(line.rstrip() for line in text.strip().splitlines())
