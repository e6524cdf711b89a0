"""The store of public datasets: preparing, locking, checking, refusing and resuming.

The hub is a directory per commit, with Parquet files written by the test.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import errors as hub_errors
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax import cloud_storage
from malora_jax.data import check_sources, open_store
from malora_jax.data.datasets import BrokenRowError, Dataset, Item, get_dataset
from malora_jax.data.file_rows import Row, read_rows
from malora_jax.data.store import LOCK_FILE, Store
from malora_jax.errors import UserError
from tests.helpers.mounts import can_mount

GSM8K, ARC, MEDMCQA = (get_dataset(name) for name in ('gsm8k', 'arc_challenge', 'medmcqa'))
OLD, NEW = 'a' * 40, 'b' * 40


def sums(*numbers: int) -> list[dict]:
    """Return rows of GSM8K."""
    return [{'question': f'Double {n}.', 'answer': f'2 * {n}.\n#### {2 * n}'} for n in numbers]


def choices(*numbers: int) -> list[dict]:
    """Return rows of ARC with 3 to 5 options."""
    return [
        {
            'question': f'Which is {n}? “é”\n本',
            'choices': {'text': [str(n + i) for i in range(size)], 'label': list('ABCDE'[:size])},
            'answerKey': 'ABC'[n % 3],
        }
        for n in numbers
        for size in [3 + n % 3]
    ]


def items(dataset: Dataset, *rows: dict) -> list[Item]:
    return [dataset.parse(Row('', row)) for row in rows]


def write_lines(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def left(store: Store) -> list[str]:
    """Return the names in a store, except the lock file and the file on which processes wait."""
    if not store.directory.exists():  # A refused request leaves no directory.
        return []
    names = {path.name for path in store.directory.iterdir()}
    return sorted(names - {LOCK_FILE, '.malora_jax.busy'})


class Hub:
    """Fake hub with the same files in every repository, which records its requests."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.asked: list[tuple] = []
        self.newest = ''

    def publish(self, commit: str, parts: dict[str, list[list[dict]]]) -> None:
        """Publish the newest commit, with the rows of the files of each CONFIG/SPLIT."""
        shutil.rmtree(self.directory / commit, ignore_errors=True)
        for place, files in parts.items():
            (self.directory / commit / place).mkdir(parents=True)
            for number, rows in enumerate(files):
                path = self.directory / commit / place / f'{number:04}.parquet'
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        self.newest = commit

    def snapshot_download(self, name, *, repo_type, revision, allow_patterns, ignore_patterns):
        self.asked.append((name, repo_type, revision, allow_patterns, ignore_patterns))
        commit = self.newest if revision == 'refs/convert/parquet' else revision
        if not (self.directory / commit).exists():
            answer = types.SimpleNamespace(headers={}, request=None)
            raise hub_errors.RevisionNotFoundError('404', response=answer)
        return str(self.directory / commit)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Hub:
    hub = Hub(tmp_path / 'hub')
    hub.publish(OLD, {'main/train': [sums(*range(5))], 'main/test': [sums(9, 8)]})
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', hub.snapshot_download)
    return hub


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / 'store')


@pytest.fixture
def local(tmp_path) -> Store:
    """Empty store whose GSM8K training split is a local file."""
    path = write_lines(tmp_path / 'train.jsonl', sums(*range(5)))
    return Store(tmp_path / 'store', (f'gsm8k/train={path}',))


# Items read back.


def test_items_are_what_was_parsed_in_order_by_random_access(hub, store):
    rows = {
        'train': [choices(*range(40)), choices(*range(40, 70))],
        'validation': [choices(70)],
        'test': [choices(*range(80, 90))],
    }
    hub.publish(NEW, {f'ARC-Challenge/{split}': files for split, files in rows.items()})
    store.prepare(ARC)
    for split, files in rows.items():
        expected = items(ARC, *(row for of_file in files for row in of_file))
        found = store.items(ARC, split)
        assert len(found) == len(expected)
        assert [found[index] for index in reversed(range(len(found)))] == expected[::-1]
        assert list(found) == expected
        with pytest.raises(IndexError):
            found[len(found)]
    assert found[0].options == ('80', '81', '82', '83', '84') and found[0].label == 2


ITEMS = st.builds(
    Item,
    question=st.text(),
    passage=st.text(),
    options=st.lists(st.text(), max_size=3).map(tuple),
    label=st.integers(-1, 2**40),
    answers=st.lists(st.text(), max_size=3).map(tuple),
    test=st.text(),
    entry_point=st.text(),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(ITEMS, min_size=1, max_size=8))
def test_any_text_comes_back(tmp_path_factory, expected):
    path = tmp_path_factory.mktemp('any')
    source = write_lines(path / 'train.jsonl', sums(1))
    dataset = dataclasses.replace(
        GSM8K,
        read=lambda _: (Row('', {'item': item}) for item in expected),
        parse=lambda row: row.fields['item'],
    )
    store = Store(path / 'store', (f'gsm8k/train={source}',))
    store.prepare(dataset)
    assert list(store.items(dataset, 'train')) == expected


def test_of_test_only_what_is_scored(tmp_path):
    row = {'opa': '1', 'opb': '2', 'opc': '3', 'opd': '4', 'cop': 1}
    kinds = {'q0': 'multi', 'q1': 'single'}
    rows = [row | {'question': name, 'choice_type': kind} for name, kind in kinds.items()]
    path = write_lines(tmp_path / 'rows.jsonl', rows)
    store = Store(tmp_path / 'store', (f'medmcqa/train={path}', f'medmcqa/test={path}'))
    store.prepare(MEDMCQA)
    assert [item.question for item in store.items(MEDMCQA, 'train')] == ['q0', 'q1']
    assert [item.question for item in store.items(MEDMCQA, 'test')] == ['q1']
    assert store.lock_entry(MEDMCQA)['left_out'] == []


@pytest.mark.parametrize('name', ['a b', 'é[0:3]', '{SPLIT}*?', 'q\'"%s', 'gs:'])
def test_any_directory_will_do(tmp_path, name):
    (tmp_path / name).mkdir()
    path = write_lines(tmp_path / name / 'train.jsonl', sums(1, 2))
    store = Store(tmp_path / name / 'new' / 'store', (f'gsm8k/train={path}',))
    store.prepare(GSM8K)
    assert list(store.items(GSM8K, 'train')) == items(GSM8K, *sums(1, 2))


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(pathlib.Path('a=b.jsonl'), sums(1))
    store = open_store('data', ['gsm8k/train=a=b.jsonl'])
    store.prepare(GSM8K)
    assert len(store.items(GSM8K, 'train')) == 1
    assert (tmp_path / 'data' / LOCK_FILE).exists() and left(store) == ['malora_gsm8k']


@pytest.mark.parametrize(
    'directory, environment, expected',
    [
        ('', '', '~/tensorflow_datasets'),
        ('', '~/data', '~/data'),
        ('here', '/data', 'here'),
        ('~/here', '', '~/here'),
        ('~nobody-of-that-name/x', '', '~nobody-of-that-name/x'),
    ],
)
def test_where_the_store_is(monkeypatch, directory, environment, expected):
    monkeypatch.setenv('TFDS_DATA_DIR', environment)
    assert open_store(directory).directory == pathlib.Path(os.path.expanduser(expected))


# Lock file.


def test_the_lock_file_says_which_rows_there_are(hub, store):
    store.prepare(GSM8K)
    root = hub.directory / OLD / 'main'
    sha256 = {
        split: [hashlib.sha256((root / split / '0000.parquet').read_bytes()).hexdigest()]
        for split in ('train', 'test')
    }
    expected = {
        'source': 'openai/gsm8k',
        'revision': OLD,
        'sha256': sha256,
        'rows': {'train': 5, 'test': 2},
        'left_out': [],
    }
    assert json.loads((store.directory / 'malora_jax.lock.json').read_text()) == {'gsm8k': expected}
    assert store.lock_entry(GSM8K) == expected and store.lock_entry(ARC) == {}


def test_what_is_asked_of_the_hub_and_only_once(hub, store):
    store.prepare(GSM8K)
    patterns = ['main/train/*.parquet', 'main/test/*.parquet']
    assert hub.asked == [('openai/gsm8k', 'dataset', 'refs/convert/parquet', patterns, [])]
    before = {path: path.stat().st_mtime_ns for path in store.directory.rglob('*')}
    store.prepare(GSM8K)
    assert len(hub.asked) == 1
    assert before == {path: path.stat().st_mtime_ns for path in store.directory.rglob('*')}


def test_datasets_share_a_lock_file(hub, store):
    store.prepare(GSM8K)
    hub.publish(NEW, {f'ARC-Challenge/{split}': [choices(1)] for split in ARC.splits})
    store.prepare(ARC)
    locks = json.loads(store.lock_path.read_text())
    assert [(name, lock['revision']) for name, lock in locks.items()] == [
        ('gsm8k', OLD),
        ('arc_challenge', NEW),
    ]


def locked_like(store: Store, directory: pathlib.Path) -> Store:
    """Return a store that contains only a copy of the lock file."""
    directory.mkdir()
    shutil.copy(store.lock_path, directory)
    return dataclasses.replace(store, directory=directory)


def test_a_lock_from_elsewhere_decides_the_commit(hub, store, tmp_path):
    store.prepare(GSM8K)
    hub.publish(NEW, {'main/train': [sums(77)], 'main/test': [sums(78)]})
    other = locked_like(store, tmp_path / 'other')
    other.prepare(GSM8K)
    assert [revision for _, _, revision, *_ in hub.asked] == ['refs/convert/parquet', OLD]
    assert list(other.items(GSM8K, 'train')) == items(GSM8K, *sums(*range(5)))
    assert other.lock_path.read_text() == store.lock_path.read_text()


def test_a_locked_commit_that_the_hub_has_no_more(hub, store, tmp_path):
    store.prepare(GSM8K)
    shutil.rmtree(hub.directory / OLD)
    other = locked_like(store, tmp_path / 'other')
    assert message(other.prepare, GSM8K) == (
        f'https://huggingface.co/datasets/openai/gsm8k has no revision {OLD}: name local files in '
        f"data.sources, such as 'gsm8k/train=PATH', or remove 'gsm8k' from {other.lock_path}."
    )


def test_other_files_than_the_locked_ones_are_refused(hub, store, tmp_path):
    store.prepare(GSM8K)
    locked = store.lock_entry(GSM8K)['sha256']['test']
    hub.publish(OLD, {'main/train': [sums(*range(5))], 'main/test': [sums(9, 7)]})
    path = hub.directory / OLD / 'main' / 'test' / '0000.parquet'
    found = [hashlib.sha256(path.read_bytes()).hexdigest()]
    other = locked_like(store, tmp_path / 'other')
    assert message(other.prepare, GSM8K) == (
        f'gsm8k/test is not what {other.lock_path} says (sha256 {found}, not {locked}): restore '
        "its files, or remove 'gsm8k' from the lock file to prepare it again."
    )
    assert left(other) == [] and other.lock_entry(GSM8K) == store.lock_entry(GSM8K)


def test_another_number_of_rows_is_refused(local, tmp_path):
    """Another version of the reader might return other rows of the same files."""
    local.prepare(GSM8K)
    other = locked_like(local, tmp_path / 'other')
    changed = dataclasses.replace(GSM8K, read=lambda path: [*read_rows(path)][1:])
    assert message(other.prepare, changed) == (
        f'gsm8k/train is not what {other.lock_path} says (rows 4, not 5): restore its files, or '
        "remove 'gsm8k' from the lock file to prepare it again."
    )
    assert left(other) == [] and other.lock_entry(GSM8K) == local.lock_entry(GSM8K)


def test_a_locked_dataset_that_is_gone_is_prepared_again(local):
    local.prepare(GSM8K)
    before = local.lock_path.read_text()
    shutil.rmtree(local.directory / 'malora_gsm8k')
    local.prepare(GSM8K)
    assert len(local.items(GSM8K, 'train')) == 5 and local.lock_path.read_text() == before


def test_what_is_removed_from_the_lock_file_is_prepared_anew(hub, store):
    store.prepare(GSM8K)
    hub.publish(NEW, {'main/train': [sums(77)], 'main/test': [sums(78)]})
    store.lock_path.write_text('{}')
    assert message(store.items, GSM8K, 'train') == (
        f"Dataset 'gsm8k' is not prepared in {store.directory}: run python -m experiments.prepare "
        'with the same config.'
    )
    store.prepare(GSM8K)
    assert [item.question for item in store.items(GSM8K, 'train')] == ['Double 77.']
    assert store.lock_entry(GSM8K)['revision'] == NEW


@pytest.mark.parametrize(
    'text, expected',
    [
        ('{', ' is not valid JSON (Expecting property name enclosed in double quotes at column 2'),
        ('\xff', ' is not UTF-8: restore it from a copy, or choose another data.directory.'),
        ('[]', ': the content is []; it must be an object with fields: restore it from a copy'),
        ('{"gsm8k": 1}', ': gsm8k is 1; it must be an object with fields: restore it from a copy'),
        ('{"piqa": {"rows": {}}}', ': piqa.source is missing: restore it from a copy'),
    ],
)
def test_a_broken_lock_file(local, text, expected):
    local.prepare(GSM8K)
    local.lock_path.write_text(text, 'latin-1')
    for told in (message(local.prepare, GSM8K), message(local.items, GSM8K, 'train')):
        assert told.startswith(f'{local.lock_path}{expected}')


# Sources of rows.


def test_only_the_splits_of_local_files_are_prepared(local):
    local.prepare(GSM8K)
    assert [*local.lock_entry(GSM8K)['rows']] == ['train'] and local.lock_entry(GSM8K)[
        'revision'
    ] is None
    assert message(local.items, GSM8K, 'test') == (
        f"{local.directory}/malora_gsm8k/1.0.0 has no split 'test', only train: name a file for it "
        "in data.sources, 'gsm8k/test=PATH'."
    )


def test_the_hub_is_not_a_file_nor_the_other_way_round(hub, store, local):
    sources = {store: 'openai/gsm8k', local: local.sources[0].removeprefix('gsm8k/')}
    for first, second in ((store, local), (local, store)):
        shutil.rmtree(store.directory, ignore_errors=True)
        first.prepare(GSM8K)
        assert message(second.prepare, GSM8K) == (
            f"Dataset 'gsm8k' in {store.directory} is from {sources[first]}, not from "
            f'{sources[second]}: choose another data.directory, or remove it from {LOCK_FILE} '
            'there to prepare it again.'
        )
        shutil.rmtree(store.directory / 'malora_gsm8k')
        assert ' is from ' in message(second.prepare, GSM8K), 'locked, though not prepared'


def test_the_same_file_in_another_place_will_do(local, tmp_path):
    local.prepare(GSM8K)
    moved = dataclasses.replace(local, sources=(f'gsm8k/train={tmp_path}/moved.jsonl',))
    (tmp_path / 'train.jsonl').rename(tmp_path / 'moved.jsonl')
    moved.prepare(GSM8K)
    other = locked_like(moved, tmp_path / 'other')
    other.prepare(GSM8K)
    assert other.lock_path.read_text() == local.lock_path.read_text()
    (tmp_path / 'moved.jsonl').unlink()
    local.prepare(GSM8K)
    assert len(local.items(GSM8K, 'train')) == 5, 'prepared rows do not need their file'
    assert message(moved.prepare, GSM8K).startswith(f'There is no data file {tmp_path}/moved.jsonl')


def test_a_file_that_has_changed_is_refused(local, tmp_path):
    local.prepare(GSM8K)
    write_lines(tmp_path / 'train.jsonl', sums(6))
    told = message(local.prepare, GSM8K)
    assert told.startswith(f'gsm8k/train is not what {local.lock_path} says (sha256 ')


def test_another_split_from_a_file_is_refused(local, tmp_path):
    local.prepare(GSM8K)
    path = write_lines(tmp_path / 'test.jsonl', sums(6))
    more = dataclasses.replace(local, sources=(*local.sources, f'gsm8k/test={path}'))
    told = message(more.prepare, GSM8K)
    assert told.startswith(f'gsm8k/test is not what {local.lock_path} says (sha256 ')


def test_a_missing_file(store, tmp_path):
    for name, expected in (('none.jsonl', 'There is no data file '), ('', 'is a directory; ')):
        missing = dataclasses.replace(store, sources=(f'gsm8k/train={tmp_path}/{name}',))
        assert expected in message(missing.prepare, GSM8K)
    assert left(store) == []


def test_a_commit_without_a_split(hub, store):
    hub.publish(NEW, {'main/train': [sums(1)]})
    assert message(store.prepare, GSM8K) == (
        f"openai/gsm8k at {NEW} has no files main/test/*.parquet for the split 'test' of dataset "
        "'gsm8k': name local files in data.sources, such as 'gsm8k/train=PATH'."
    )
    assert left(store) == []


@pytest.mark.parametrize(
    'sources, expected',
    [
        (['gsm8k=a.jsonl'], "holds 'gsm8k=a.jsonl'; write 'DATASET/SPLIT=PATH', such as"),
        (['gsm8k/train'], "holds 'gsm8k/train'; write"),
        (['gsm8k/train='], "holds 'gsm8k/train='; write"),
        ([''], "holds ''; write"),
        (['gsm9k/train=a'], "Unknown dataset 'gsm9k': did you mean gsm8k"),
        (
            ['gsm8k/validation=a'],
            "Unknown split of 'gsm8k' in data.sources 'validation': known are test, train.",
        ),
        (
            ['gsm8k/train=a', 'gsm8k/train=b'],
            'data.sources names a file for gsm8k/train twice; a split has one file.',
        ),
    ],
)
def test_sources_that_cannot_be(sources, expected):
    assert expected in message(check_sources, sources)


def test_sources_that_can_be():
    check_sources(['gsm8k/train=a=b/c', 'gsm8k/test=a', 'piqa/test=a'])


# Broken rows.

MISSING = {'question': 'q'}
NUMBER = {'question': 3.5, 'answer': '#### 1'}
EMPTY = {'question': 'q', 'answer': ''}
HALF = {'question': 'q\ud800', 'answer': '#### 1'}


def with_rows(tmp_path: pathlib.Path, rows: list[dict], **settings) -> tuple[Store, Dataset]:
    """Return a store of GSM8K with these rows, whose fields may be of any type."""
    path = tmp_path / 'rows.jsonl'
    path.touch()

    def read(path):
        return (Row(f'{path} line {number}', row) for number, row in enumerate(rows, start=1))

    store = Store(tmp_path / 'store', (f'gsm8k/train={path}',), **settings)
    return store, dataclasses.replace(GSM8K, read=read)


@pytest.mark.parametrize(
    'row, expected',
    [
        (MISSING, " has no field 'answer'; it has 'question'"),
        (NUMBER, ": field 'question' is 3.5; it must be text"),
        (EMPTY, ": field 'answer' is empty; it must be text"),
        (
            HALF,
            ": field 'question' is not UTF-8: save the file as UTF-8",
        ),
    ],
)
def test_a_broken_row_is_an_error_that_leaves_nothing(tmp_path, row, expected):
    store, dataset = with_rows(tmp_path, [*sums(1, 2), row])
    with pytest.raises(BrokenRowError) as caught:
        store.prepare(dataset)
    place, hint = f'{tmp_path}/rows.jsonl line 3', 'set data.skip_broken to True to skip such rows'
    assert str(caught.value) == f'{place}{expected}; {hint}.'
    assert left(store) == [] and not store.lock_path.exists()


def test_broken_rows_are_left_out_and_listed_where_that_is_wanted(tmp_path):
    rows = [*sums(1), MISSING, *sums(2), EMPTY, *sums(3)]
    store, dataset = with_rows(tmp_path, rows, skip_broken=True)
    store.prepare(dataset)
    assert list(store.items(dataset, 'train')) == items(GSM8K, *sums(1, 2, 3))
    lock = store.lock_entry(dataset)
    assert lock['rows'] == {'train': 3}
    assert lock['left_out'] == [
        f"{tmp_path}/rows.jsonl line 2 has no field 'answer'; it has 'question'.",
        f"{tmp_path}/rows.jsonl line 4: field 'answer' is empty; it must be text.",
    ]
    strict = dataclasses.replace(store, skip_broken=False)
    assert message(strict.prepare, dataset) == (
        f"Dataset 'gsm8k' in {store.directory} was prepared without its broken rows (2), but "
        f'data.skip_broken is False; the first: {lock["left_out"][0]}'
    )


def test_an_original_file_of_medmcqa_is_not_a_broken_row(tmp_path):
    """The file counts options from 1, so every label would be wrong."""
    row = {'question': 'q', 'opa': '1', 'opb': '2', 'opc': '3', 'opd': '4', 'choice_type': 'single'}
    path = write_lines(tmp_path / 'dev.jsonl', [row | {'cop': 1}, row | {'cop': 4}])
    store = Store(tmp_path / 'store', (f'medmcqa/train={path}',), skip_broken=True)
    told = message(store.prepare, MEDMCQA)
    assert told.startswith(f"{path} line 2: field 'cop' is 4, so this is an original file, which")
    assert left(store) == []


def test_a_file_that_is_no_table_is_never_skipped(tmp_path):
    path = write_lines(tmp_path / 'train.jsonl', sums(1))
    path.write_text(path.read_text() + '{"question": "q",\n')
    store = Store(tmp_path / 'store', (f'gsm8k/train={path}',), skip_broken=True)
    assert message(store.prepare, GSM8K).startswith(f'{path} line 2 is not valid JSON')
    assert left(store) == []


def test_a_file_that_is_not_utf_8(tmp_path):
    path = write_lines(tmp_path / 'train.jsonl', sums(1))
    path.write_bytes(path.read_bytes() + b'{"question": "\xe9", "answer": "#### 1"}\n')
    store = Store(tmp_path / 'store', (f'gsm8k/train={path}',))
    told = message(store.prepare, GSM8K)
    assert told.startswith(f"{path} line 2: field 'question' is not UTF-8: save the file as UTF-8")
    assert left(store) == []
    tolerant = dataclasses.replace(store, skip_broken=True)
    tolerant.prepare(GSM8K)
    assert len(tolerant.items(GSM8K, 'train')) == 1
    assert tolerant.lock_entry(GSM8K)['left_out'] == [told.partition('; set data')[0] + '.']


def test_a_split_needs_a_row(tmp_path):
    store, dataset = with_rows(tmp_path, [EMPTY] * 3, skip_broken=True)
    told, path = "Split 'train' of dataset 'gsm8k' has no usable row: ", tmp_path / 'rows.jsonl'
    assert message(store.prepare, dataset) == (
        f"{told}{path} line 1: field 'answer' is empty; it must be text."
    )
    assert message(store.prepare, GSM8K) == f'{told}{path} has none.'
    assert left(store) == []


def test_a_bug_in_a_parser_stays_a_bug(local):
    def parse(row):
        raise ZeroDivisionError('a bug')

    with pytest.raises(ZeroDivisionError, match=r'^a bug$'):
        local.prepare(dataclasses.replace(GSM8K, parse=parse))
    assert left(local) == []


def test_a_split_that_is_larger_than_the_buffer(local, monkeypatch):
    monkeypatch.setattr('tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE', 10)
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    assert message(local.prepare, GSM8K) == (
        "Dataset 'gsm8k' has a split of more than 1 GB, which is more than TFDS can hold without "
        'TensorFlow.'
    )
    assert left(local) == []


# Damage, interruption and concurrent access.


def test_damage_is_told(local):
    local.prepare(GSM8K)
    directory = local.directory / 'malora_gsm8k' / '1.0.0'

    def damaged(name: str, content: bytes | None) -> str:
        path = directory / name
        before = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        told = message(local.items, GSM8K, 'train')
        path.write_bytes(before)
        assert told.startswith(f'{directory} is damaged (')
        assert told.endswith('): remove that directory, and it will be prepared again.')
        return told

    shard = 'malora_gsm8k-train.array_record-00000-of-00001'
    assert 'No such file or directory' in damaged(shard, None)
    damaged(shard, b'')
    damaged(shard, (directory / shard).read_bytes()[:70_000])
    for name in ('dataset_info.json', 'features.json'):
        damaged(name, None)
        damaged(name, b'{')
    assert len(local.items(GSM8K, 'train')) == 5


def test_rows_that_are_not_the_locked_ones(local):
    local.prepare(GSM8K)
    locks = json.loads(local.lock_path.read_text())
    locks['gsm8k']['rows']['train'] = 1234
    local.lock_path.write_text(json.dumps(locks))
    assert message(local.items, GSM8K, 'train') == (
        f"{local.directory}/malora_gsm8k/1.0.0 has 5 rows in its split 'train', but {LOCK_FILE} "
        'says '
        '1,234: remove that directory, and it will be prepared again.'
    )


def test_a_directory_that_is_a_file(local, tmp_path):
    (tmp_path / 'file').touch()
    taken = dataclasses.replace(local, directory=tmp_path / 'file')
    assert message(taken.prepare, GSM8K) == f'data.directory: {tmp_path}/file is not a directory.'
    with pytest.raises(NotADirectoryError):
        dataclasses.replace(local, directory=tmp_path / 'file' / 'within').prepare(GSM8K)


SLOW = """
import dataclasses, os, pathlib, sys, time
from malora_jax.data.datasets import get_dataset
from malora_jax.data.file_rows import read_rows
from malora_jax.data.store import Store

signs, directory, source = sys.argv[1:]

def read(path):
    rows = [*read_rows(path)]
    yield rows[0]
    pathlib.Path(signs, f'begun-{os.getpid()}').touch()
    while not os.path.exists(f'{signs}/go'):
        time.sleep(0.01)
    yield from rows[1:]

dataset = dataclasses.replace(get_dataset('gsm8k'), read=read)
Store(pathlib.Path(directory), (source,)).prepare(dataset)
"""


class Slow:
    """Processes that fill a store, and pause after the first row until they are released."""

    def __init__(self, signs: pathlib.Path, store: Store):
        self.signs, self.store = signs, store
        self.running: list[subprocess.Popen] = []
        signs.mkdir()

    @property
    def begun(self) -> int:
        """Number of processes that have read a row."""
        return len([*self.signs.glob('begun-*')])

    def start(self) -> subprocess.Popen:
        arguments = [self.signs, self.store.directory, *self.store.sources]
        command = [sys.executable, '-c', SLOW, *arguments]
        self.running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return self.running[-1]

    def wait_until_begun(self) -> None:
        end = time.monotonic() + 60
        while not self.begun:
            assert time.monotonic() < end and self.running[0].poll() is None
            time.sleep(0.01)


@pytest.fixture
def slow(local, tmp_path):
    slow = Slow(tmp_path / 'signs', local)
    yield slow
    for process in slow.running:
        process.kill()
        process.communicate()


def test_a_killed_preparation_is_begun_anew(slow, local, tmp_path):
    process = slow.start()
    slow.wait_until_begun()
    process.kill()
    process.wait()
    assert left(local) == ['.malora_jax.tmp']
    assert ' is not prepared in ' in message(local.items, GSM8K, 'train')
    local.prepare(GSM8K)
    untouched = dataclasses.replace(local, directory=tmp_path / 'untouched')
    untouched.prepare(GSM8K)
    names = [
        sorted(path.relative_to(store.directory) for path in store.directory.rglob('*'))
        for store in (local, untouched)
    ]
    assert names[0] == names[1]
    assert local.lock_path.read_text() == untouched.lock_path.read_text()
    assert list(local.items(GSM8K, 'train')) == list(untouched.items(GSM8K, 'train'))


def test_of_two_processes_one_prepares_and_both_succeed(slow, local):
    first = slow.start()
    slow.wait_until_begun()
    second = slow.start()
    told = second.stderr.readline()
    assert told == f'Waiting for another process that prepares {local.directory}.\n'
    (slow.signs / 'go').touch()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert slow.begun == 1
    assert len(local.items(GSM8K, 'train')) == 5


GUARDED = """
import pathlib, socket, sys

def no_network(*arguments, **settings):
    raise AssertionError(f'the network is asked for {arguments}')

for name in ('connect', 'connect_ex', 'sendto'):
    setattr(socket.socket, name, no_network)
socket.getaddrinfo = no_network

from malora_jax.data.datasets import get_dataset
from malora_jax.data.store import Store

directory, other, source = sys.argv[1:]
dataset = get_dataset('gsm8k')
for store in (Store(pathlib.Path(directory)), Store(pathlib.Path(other), (source,))):
    store.prepare(dataset)
    print([item.question for item in store.items(dataset, 'train')])
assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules
"""


def test_no_network_for_what_is_prepared_and_no_tensorflow_at_all(hub, store, local, tmp_path):
    """The network is unused for a prepared dataset of the hub and for an unprepared local one."""
    store.prepare(GSM8K)
    (tmp_path / 'tensorflow.py').write_text('raise AssertionError("TensorFlow is imported")')
    path = os.pathsep.join([str(tmp_path), *sys.path])
    arguments = [store.directory, tmp_path / 'other', *local.sources]
    command = [sys.executable, '-c', GUARDED, *arguments]
    environment = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    questions = [row['question'] for row in sums(*range(5))]
    assert done.stdout == f'{questions}\n' * 2


DISK = """
import pathlib, subprocess, sys
from malora_jax.data.datasets import get_dataset
from malora_jax.data.store import Store

disk, source = sys.argv[1:]
store, dataset = Store(pathlib.Path(disk, 'store'), (source,)), get_dataset('gsm8k')
for options in ('size=50k', 'remount,size=5m', 'remount,ro'):
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'none', disk], check=True)
    try:
        store.prepare(dataset)
        print(len(store.items(dataset, 'train')))
    except OSError as error:
        print(error.errno, sorted(path.name for path in store.directory.rglob('*')))
"""


@pytest.mark.skipif(not can_mount(), reason='needs Linux user namespaces')
def test_a_disk_that_is_full_and_then_larger_and_then_read_only(local, tmp_path):
    (tmp_path / 'disk').mkdir()
    command = ['unshare', '--map-root-user', '--mount', sys.executable, '-c', DISK]
    arguments = [tmp_path / 'disk', *local.sources]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "28 ['.malora_jax.busy']\n5\n5\n"


def test_what_one_machine_prepares_in_a_bucket_another_reads(bucket, tmp_path):
    """Both machines use the same source, which is in the bucket too."""
    cloud_storage.localize(f'{bucket}/sources').mkdir(parents=True)
    write_lines(cloud_storage.localize(f'{bucket}/sources') / 'train.jsonl', sums(1, 2))
    cloud_storage.upload_changes()
    sources = (f'gsm8k/train={bucket}/sources/train.jsonl',)
    open_store(f'{bucket}/data', sources).prepare(GSM8K)
    cloud_storage.remove_local_copies()
    store = open_store(f'{bucket}/data', sources)
    assert [*store.items(GSM8K, 'train')] == items(GSM8K, *sums(1, 2))
    assert store.lock_entry(GSM8K)['source'] == f'train={bucket}/sources/train.jsonl'
    before = {blob.name: blob.generation for blob in stored(bucket)}
    store.prepare(GSM8K)
    assert {blob.name: blob.generation for blob in stored(bucket)} == before
    cloud_storage.remove_local_copies()


def stored(bucket):
    from google.cloud import storage

    return storage.Client().list_blobs(bucket.removeprefix('gs://'), prefix='data/')
