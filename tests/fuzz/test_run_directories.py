"""Damaged and edited run directories: the run gives the undamaged result, or is refused."""

import json
import pathlib
import random
import shutil

import pytest

from malora_jax import training
from malora_jax.errors import UserError
from malora_jax.files import read_json
from tests.helpers.runs import toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.fuzz

# Two runs whose configs differ without changing any shape.
OTHER = {'seed': 1, 'optimizer__learning_rate': 3e-3, 'adapter__alpha': 3.0}
RECORDS = ('config.json', 'base.json', 'data.json')


@pytest.fixture(scope='module')
def runs(compile_quickly, tmp_path_factory):
    """Settings and finished directory of two runs on a data file, by name."""
    folder = tmp_path_factory.mktemp('runs')
    write_tiny_gguf(folder / 'tiny.gguf')
    rows = [{'question': f'{n} and 1?', 'answer': str(n + 1)} for n in range(40)]
    (folder / 'mine.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    made = {}
    for name, changes in (('ours', {}), ('theirs', OTHER)):
        settings = toy_run_config(
            folder / 'tiny.gguf',
            data__tasks=(),
            data__files=(str(folder / 'mine.jsonl'),),
            data__held_out=4,
            training__steps=4,
            **changes,
        )
        training.train(settings, folder / name)
        made[name] = settings, folder / name
    return made


def digests(workdir: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of each array of the last checkpoint."""
    return read_json(workdir / 'checkpoints' / '4' / 'manifest' / 'data.json')['arrays']


# Kinds of damage: each takes a random generator, our directory and another run's directory, and
# returns a description.


def any_file(rng: random.Random, workdir: pathlib.Path) -> pathlib.Path:
    """Return a random file of the directory; a checkpoint's files are chosen less often."""
    files = [path for path in sorted(workdir.rglob('*')) if path.is_file() and path.name != '.lock']
    outside = [path for path in files if 'checkpoints' not in path.parts]
    return rng.choice(outside if outside and rng.random() < 0.6 else files)


def remove_file(rng, workdir, other):
    path = any_file(rng, workdir)
    path.unlink()
    return f'removed {path}'


def truncate(rng, workdir, other):
    path = any_file(rng, workdir)
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) or 1)])
    return f'truncated {path}'


def flip_bits(rng, workdir, other):
    path = any_file(rng, workdir)
    content = bytearray(path.read_bytes())
    # A digit of a score may become another, which no reader can detect.
    if not content or path.name.startswith(('results', 'answers', 'metrics', 'goodput')):
        return 'nothing'
    place = rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f'flipped a bit of {path} at {place}'


def replace_with_junk(rng, workdir, other):
    path = any_file(rng, workdir)
    content = rng.choice(
        [b'', b'[]', b'{}', b'null', b'[' * 10**5, b'\xff\xfe', b'1' * 5000, b'"a"']
    )
    path.write_bytes(content)
    return f'replaced {path} by {content[:10]!r}'


def edit_config(rng, workdir, other):
    path = workdir / 'config.json'
    if not path.exists():
        return 'nothing'
    config = read_json(path)
    section = config[rng.choice(['adapter', 'optimizer', 'training', 'data', 'evaluation'])]
    field = rng.choice(sorted(section))
    section[field] = rng.choice([0, 1, 2, 0.5, 10**20, -1, True, 'x', None, [], {}])
    path.write_text(json.dumps(config))
    return f'set {field} to {section[field]!r} in {path}'


def edit_record(rng, workdir, other):
    path = workdir / rng.choice(RECORDS)
    if not path.exists():
        return 'nothing'
    value = read_json(path)
    key = rng.choice(sorted(value))
    value[key] = rng.choice(['0' * 32, 1, None, {}, []])
    path.write_text(json.dumps(value))
    return f'set {key} to {value[key]!r} in {path}'


def copy_file(rng, workdir, other):
    path = any_file(rng, other)
    # Nothing distinguishes answers and metrics of another run with the same shape from ours.
    if path.name.startswith(('results', 'answers', 'metrics', 'goodput')):
        return 'nothing'
    target = workdir / path.relative_to(other)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
    return f'copied {path}'


def copy_checkpoint(rng, workdir, other):
    step = rng.choice(['2', '4'])
    name = rng.choice(['2', '4', '6'])
    target = workdir / 'checkpoints' / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(other / 'checkpoints' / step, target)
    return f'copied checkpoint {step} as {name}'


def remove_checkpoint(rng, workdir, other):
    step = rng.choice(['2', '4'])
    shutil.rmtree(workdir / 'checkpoints' / step, ignore_errors=True)
    return f'removed checkpoint {step}'


def change_lines(rng, workdir, other):
    names = ('metrics.jsonl', 'answers_before.jsonl', 'answers_after.jsonl')
    path = workdir / rng.choice(names)
    if not path.exists() or not (lines := path.read_text().splitlines(keepends=True)):
        return 'nothing'
    number = rng.randrange(len(lines))
    if rng.random() < 0.5:
        del lines[number]
    else:
        lines.insert(number, lines[number])
    path.write_text(''.join(lines))
    return f'removed or doubled line {number + 1} of {path}'


def unfinish(rng, workdir, other):
    for name in ('results.json', 'answers_before.jsonl', 'answers_after.jsonl')[rng.randrange(3) :]:
        (workdir / name).unlink(missing_ok=True)
    return 'removed results'


DAMAGES = (
    *(remove_file, truncate, flip_bits, replace_with_junk, edit_config, edit_record, copy_file),
    *(copy_checkpoint, remove_checkpoint, change_lines, unfinish),
)


def test_a_run_ends_as_if_nothing_had_happened_or_is_refused(attempts, runs, tmp_path):
    for rng in attempts(40):
        (_, ours), (_, theirs) = runs['ours'], runs['theirs']
        workdir = tmp_path / 'run'
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(ours, workdir)
        if rng.random() < 0.7:
            unfinish(random.Random(0), workdir, theirs)
        done = [rng.choice(DAMAGES)(rng, workdir, theirs) for _ in range(rng.choice([1, 1, 2, 3]))]
        name = rng.choice(['ours', 'ours', 'theirs'])
        settings, whole = runs[name]
        was_finished = (workdir / 'results.json').exists()
        print(f'{done}; then trained with the config of {name}')
        try:
            found = training.train(settings, workdir)
        except (UserError, OSError) as error:
            assert '\n' not in str(error), error
            print(f'  refused: {error}')
            continue
        print('  ended')
        expected = read_json(whole / 'results.json')
        assert json.loads(json.dumps(found))['tasks'] == expected['tasks']
        assert found['seed'] == expected['seed']
        if not was_finished:
            assert digests(workdir) == digests(whole)
