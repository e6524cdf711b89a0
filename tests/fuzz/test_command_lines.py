"""Random invalid command lines are refused in one line, and leave no files behind.

Every command that would train or measure gets a path without weights, so that a command line that
happens to be valid is refused there at the latest.
"""

import os
import pathlib
import random
import shutil

import pytest

from tests.helpers.fork_server import TOO_LONG
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.fuzz

CONFIG = f'--config={ROOT}/configs/quickstart.py:malora'
SWEEP = f'--config={ROOT}/configs/sweeps/rank.py'
# These flags come last, so that no earlier value makes a command do real work.
WITHOUT = (
    '--config.model.name=tiny',
    '--config.model.weights=nothing.gguf',
)
# Valid arguments, and the arguments that must come last, by command.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'train': ((CONFIG, '--workdir=run'), WITHOUT),
    'evaluate': ((CONFIG, '--workdir=run'), WITHOUT),
    'plan': ((CONFIG,), WITHOUT),
    'prepare': ((CONFIG, '--config.data.directory=store'), ()),
    'benchmark': ((CONFIG, '--output=out/b.json'), (*WITHOUT, '--topology=v0:1x1')),
    'sweep': ((SWEEP, '--workdir=run'), ('--report',)),
    'sweep slurm': ((SWEEP, '--workdir=run'), ('--launcher=slurm', '--sbatch="')),
    'sweep gpus': ((SWEEP, '--workdir=run'), ('--launcher=local', '--gpus=a,b')),
    'train_together': (('--workdir=run', '--runs=a,b'), ()),
    'scaling': (
        (CONFIG, '--models=tiny', '--topologies=v5e:2x2', '--output=scaling.json'),
        ('--topologies=v0:1',),
    ),
    'analyze': (('--workdir=run', '--output=out'), ()),
    'analyze table': (('--table=table1', '--workdir=run', '--output=out'), ()),
    'export': (('--workdir=run', '--format=adapter', '--output=out'), ()),
    'generate': (('--workdir=run', '--input=rows.jsonl', '--output=out/a.jsonl'), ()),
    'serve': (('--workdir=run', '--port=0'), ()),
}
_ASK = ('--llm=model', '--output=data/out', '--base-url=http://127.0.0.1:9/v1')
STAGES: dict[str, tuple[str, ...]] = {
    'documents': ('--language=fr', '--input=rows.jsonl', '--tokenizer=tiny', '--output=data/out'),
    'dialogues': ('--input=rows.jsonl', '--tokenizer=tiny', *_ASK),
    'criteria': ('--input=rows.jsonl', *_ASK),
    'translate': ('--language=fr', '--input=rows.jsonl', *_ASK),
    'prune': ('--input=rows.jsonl', '--output=data/out'),
    'export': ('--input=rows.jsonl', '--output=data/out'),
    'import': ('--input=folder', '--output=data/out'),
    'report': ('--input=rows.jsonl', '--tokenizer=tiny', '--output=data/out'),
    'mgsm': ('--language=fr', '--input=rows.tsv', *_ASK),
    'answers': ('--input=rows.jsonl', *_ASK),
    'judge': ('--language=fr', '--input=rows.jsonl', '--baseline=rows.jsonl', *_ASK),
}
VALUES = (
    *('', ' ', '0', '1', '-1', '2147483648', '9223372036854775808', '1' + '0' * 20, '9' * 5000),
    *('1e400', '-inf', 'nan', '0.5', 'True', 'None', '"', "'", '\\', '()', '(', "('a',)", '[[]]'),
    *('a,b', ',', 'größe', '\u202e数学', '/dev/zero', 'pipe.jsonl', 'rows.jsonl', 'folder', '..'),
    *('gs://', 'gs://bucket', 'http://x', 'x' * 3000, '../../..', '{}', '{0}', '%s', '\x1b[2J'),
    *('a\nb', '=', '--', '__import__("os")', '\udcff'),
)
FLAGS = (
    *('workdir', 'config', 'output', 'input', 'jobs', 'gpus', 'sbatch', 'together'),
    *('weights', 'questions', 'batch_size', 'max_new_tokens', 'temperature', 'top_p', 'top_k'),
    *('seed', 'stop', 'port', 'host', 'timeout', 'max_waiting', 'memory', 'methods', 'rounds'),
    *('runs', 'table', 'rank', 'task', 'format', 'rows', 'tokens', 'grow', 'language', 'llm'),
    *('tokenizer', 'concurrency', 'token_limit', 'cache', 'stages', 'revision', 'base_url'),
    *('models', 'topologies', 'rows_per_chip', 'unknown', 'flagfile', 'größe'),
)
FIELDS = (
    *('seed', 'method', 'nothing', 'model', 'model.dtype', 'model.quantize', 'data', 'data.tasks'),
    *('data.weights', 'data.template', 'data.max_per_task', 'data.held_out', 'data.validation'),
    *('data.sequence_length', 'data.batch_size', 'data.workers', 'data.streams', 'data.files'),
    *('data.file_settings', 'data.scorer', 'data.directory', 'data.sources', 'data.form'),
    *('data.question_field', 'data.turns_field', 'data.task_settings', 'data.size_exponent'),
    *('adapter.rank', 'adapter.shared_rank', 'adapter.num_experts', 'adapter.top_k'),
    *('adapter.alpha', 'adapter.dropout', 'adapter.targets', 'adapter.router', 'adapter.frozen'),
    *('optimizer.learning_rate', 'optimizer.warmup_ratio', 'optimizer.schedule'),
    *('training.steps', 'training.epochs', 'training.checkpoint_every', 'training.accumulate'),
    *('training.remat', 'training.patience', 'training.start_from', 'training.evaluate_every'),
    *('evaluation.batch_size', 'evaluation.max_new_tokens', 'evaluation.tasks', 'mesh.data'),
    *('evaluation.samples', 'evaluation.temperature', 'mesh.fsdp', 'mesh.tensor', 'seeds', 'grid'),
    *('model.attention', 'training.router_start'),
)


def command_line(rng: random.Random) -> list[str]:
    """Return a command with one to three random errors."""
    if rng.random() < 0.3:
        stage = rng.choice([*STAGES])
        first, arguments, last = ['ultralink', stage], [*STAGES[stage]], []
    else:
        command = rng.choice([*COMMANDS])
        first = [command.split()[0]]
        arguments, last = map(list, COMMANDS[command])
    configured = any(argument.startswith('--config=') for argument in arguments)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = rng.choice(VALUES)
        how = rng.choice(('value', 'flag', 'field', 'field', 'field', 'drop', 'twice', 'word'))
        at = rng.randrange(len(arguments)) if arguments else 0
        if how == 'value' and arguments:
            arguments[at] = arguments[at].partition('=')[0] + f'={value}'
        elif how == 'field' and configured:
            arguments.append(f'--config.{rng.choice(FIELDS)}={value}')
        elif how == 'drop' and arguments:
            del arguments[at]
        elif how == 'twice' and arguments:
            arguments.append(arguments[at])
        elif how == 'word':
            arguments.insert(at, rng.choice((value, f'--{value}', '-x', '--=')))
        else:
            arguments.append(f'--{rng.choice(FLAGS)}={value}')
    # A process cannot be started with a null character in its arguments.
    return [*first, *arguments, *last]


def listing(path: pathlib.Path) -> dict[str, int]:
    return {
        str(inner.relative_to(path)): inner.lstat().st_size
        for inner in sorted(path.rglob('*'))
        if not inner.is_dir() or not any(inner.iterdir())
    }


def test_command_lines(server, attempts, tmp_path):
    work = tmp_path / 'work'
    for rng in attempts(60):
        shutil.rmtree(work, ignore_errors=True)
        (work / 'folder').mkdir(parents=True)
        (work / 'rows.jsonl').write_text(rng.choice(('', '{}\n', '{"id": 1', '[]\n', '\xff\n')))
        (work / 'rows.tsv').write_text('a\tb\tc\n')
        os.mkfifo(work / 'pipe.jsonl')
        before, command = listing(work), command_line(rng)
        name, *arguments = command
        found = server.run(f'experiments.{name}', *arguments, directory=work, limited=True)
        status, told = found.returncode, found.stderr
        why = ([argument[:200] for argument in command], status, told[-2000:])
        assert status in (0, 1, 2), why
        assert 'Traceback' not in told and TOO_LONG not in told, why
        if status:
            # Later output overwrites progress bars.
            lines = [line for line in told.split('\n') if line.strip() and '\r' not in line]
            assert len(lines) == 1, why
            assert listing(work) == before, (why, listing(work).keys() - before.keys())
