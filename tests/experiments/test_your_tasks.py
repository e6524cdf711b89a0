"""configs/your_tasks.py with the real commands: from data files to a report."""

import hashlib
import json
import pathlib
import re
import subprocess

import pyarrow
import pyarrow.parquet
import pytest

from malora_jax.errors import UserError
from malora_jax.training import train
from malora_jax.training.config_format import read_config
from malora_jax.training.evaluate import evaluate
from tests.helpers.fork_server import run_module
from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)

COMMAND = ('experiments.train', '--config=configs/your_tasks.py:malora')
SMALL = [
    *('--config.model.name=tiny', '--config.adapter.rank=2', '--config.adapter.shared_rank=4'),
    *('--config.data.held_out=4', '--config.data.validation=2', '--config.data.batch_size=1'),
    *('--config.data.sequence_length=128', '--config.training.steps=2'),
    *('--config.training.evaluate_every=1', '--config.evaluation.max_new_tokens=8'),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module(*COMMAND, *arguments, timeout=300)


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> pathlib.Path:
    """Directory with a model and files of three kinds; 'sums' and 'more' share a question."""
    home = tmp_path_factory.mktemp('home')
    write_tiny_gguf(home / 'tiny.gguf')
    sums = [{'prompt': f'{n} + 1?', 'completion': n + 1} for n in range(40)]
    lines = [json.dumps(row) for row in [*sums, sums[7]]]
    (home / 'sums.jsonl').write_text('\n'.join(lines), 'utf-8')
    (home / 'letters.csv').write_text(
        'of,"the word",letter\n' + ''.join(f'first,"w{n}, x",w\n' for n in range(20)), 'utf-8'
    )
    tests = {'prompt': ['7 + 1?', 'a?', 'b?'], 'completion': [8, 1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(tests), home / 'test.parquet')
    train = {'prompt': [f'{n} * 2?' for n in range(9)], 'completion': [2.0 * n for n in range(9)]}
    pyarrow.parquet.write_table(pyarrow.table(train), home / 'more.parquet')
    return home


@pytest.fixture(scope='module')
def files(home) -> list[str]:
    """Command-line arguments that name the files."""
    paths = [f'sums={home}/sums.jsonl', f'{home}/letters.csv', f'more={home}/more.parquet']
    settings = [
        'letters.question_field={of} of {the word}?\\nSay it.',
        'letters.answer_field=letter',
        'letters.scorer=choice',
        f'more.test_file={home}/test.parquet',
    ]
    return [
        f'--config.data.files={tuple(paths)!r}',
        '--config.data.question_field=prompt',
        '--config.data.answer_field=completion',
        f'--config.data.file_settings={tuple(settings)!r}',
        f'--config.model.weights={home}/tiny.gguf',
    ]


@pytest.fixture(scope='module')
def finished(home, files) -> tuple[pathlib.Path, str]:
    """Directory and output of a finished run."""
    done = run(*files, *SMALL, f'--workdir={home}/run')
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
    return home / 'run', done.stdout


def test_what_was_read_is_printed_and_kept(home, finished):
    workdir, printed = finished
    assert f'sums: 41 rows of {home}/sums.jsonl, 1 exact duplicates dropped, ' in printed
    assert 'Right answers (%) of malora on tiny, held-out questions' in printed
    results = json.loads((workdir / 'results.json').read_text('utf-8'))
    tasks, data = results['tasks'], results['training_data']
    assert [task['metric'] for task in tasks.values()] == ['exact_match', 'choice', 'exact_match']
    assert [task['examples'] for task in tasks.values()] == [4, 4, 3]
    assert data['letters']['file'] == f'{home}/letters.csv'
    assert tasks['letters']['best_constant'] == 1.0
    sums, more = data['sums'], data['more']
    assert (sums['rows'], sums['dropped_duplicates']) == (41, 1)
    assert (more['rows'], more['test_rows'], more['examples']) == (9, 3, 7)
    # '7 + 1?' is held out in 'more'.
    assert (sums['examples'], sums['dropped_shared']) == (33, 1)


def answers(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / 'answers_after.jsonl').read_text('utf-8').splitlines()
    return [json.loads(line) for line in lines]


def test_held_out_questions_are_asked_in_the_words_of_the_files(finished):
    by_task = {}
    for answer in answers(finished[0]):
        by_task.setdefault(answer['task'], []).append((answer['question'], answer['expected']))
    assert sorted(by_task['more']) == [('7 + 1?', '8'), ('a?', '1'), ('b?', '2')]
    assert all(q.endswith(', x?\nSay it.') and a == 'w' for q, a in by_task['letters'])
    assert all(int(q.split()[0]) + 1 == int(a) for q, a in by_task['sums'])


def test_the_content_of_the_files_is_pinned(home, finished):
    workdir, _ = finished
    names = ['sums.jsonl', 'letters.csv', 'more.parquet', 'test.parquet']
    assert json.loads((workdir / 'data.json').read_text('utf-8')) == {
        f'{home}/{name}': hashlib.sha256((home / name).read_bytes()).hexdigest() for name in names
    }
    config = read_config(workdir / 'config.json')
    scores = json.loads((workdir / 'results.json').read_text('utf-8'))['average']
    assert evaluate(config, workdir)['average'] == scores['after']

    path = home / 'test.parquet'
    content = path.read_bytes()
    table = pyarrow.table({'prompt': ['c?'], 'completion': [1]})
    pyarrow.parquet.write_table(table, path)
    for again in (train, evaluate):
        with pytest.raises(UserError) as caught:
            again(config, workdir)
        assert str(caught.value) == (
            f'{path} has changed since the run in {workdir} was started: restore it, or choose '
            'another --workdir.'
        )
    path.write_bytes(content)
    assert train(config, workdir)['average'] == scores


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([], "data.tasks and data.files are both empty; name a task, or a file: ('mine.jsonl',)."),
        (
            ["--config.data.files=('a.jsonl',)"],
            f'There is no data file a.jsonl (looked for in {ROOT}).',
        ),
    ],
    ids=['nothing', 'missing'],
)
def test_mistakes_are_one_line(tmp_path, arguments, expected):
    done = run(*arguments, f'--workdir={tmp_path}/run')
    assert (done.returncode, done.stderr, done.stdout) == (2, f'{expected}\n', '')
    assert not (tmp_path / 'run').exists()


def test_a_held_out_question_that_does_not_fit(home, files, tmp_path):
    """The error comes before training; held-out questions may be longer than a training row."""
    path = tmp_path / 'long.jsonl'
    path.write_text('{"prompt": "' + 'x' * 99_999 + '", "completion": "y"}', 'utf-8')
    own = [f'--config.data.files=("more={home}/more.parquet",)', *files[1:3], files[-1]]
    own.append(f'--config.data.file_settings=("more.test_file={path}",)')
    done = run(*own, *SMALL, f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    assert re.match(r"Task 'more': the context of tiny is \d+; it must be at least \d", done.stderr)
    assert f'({path} line 1, ' in done.stderr
    assert not (tmp_path / 'run').exists()
