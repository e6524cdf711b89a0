"""Directories of stages: their content, and refused ones."""

import contextlib
import dataclasses
import hashlib
import json

import pytest

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import shards
from malora_jax.ultralink.shards import ShardCounts, StageManifest
from tests.ultralink.helpers import read_rows, write_rows

MANIFEST = StageManifest('some', {'a': 1, 'b': {'c': (1, 2)}}, 0, 'digest', 2)


def written(path, count=3, finish=True):
    with shards.open_writer(path, MANIFEST) as target:
        for number in range(count):
            counts = ShardCounts(2, 1, 1, {'odd': 1}, {'odd': f'file:{number}'}, {'x': number})
            target.add([{'id': number, 'text': 'é\u2028'}], counts)
        if finish:
            target.finish()
    return path


def test_rows_and_counts_come_back(tmp_path):
    path = written(tmp_path / 'out')
    rows = list(shards.read([path]))
    assert [row.fields for row in rows] == [{'id': i, 'text': 'é\u2028'} for i in range(3)]
    assert rows[2].location == f'{path}/rows-00002.jsonl:1'
    assert read_rows(path) == [row.fields for row in rows]
    total = json.loads((path / 'manifest.json').read_text('utf-8'))['total']
    assert total == {
        'items': 6,
        'kept': 3,
        'rows': 3,
        'dropped': {'odd': 3},
        'first': {'odd': 'file:0'},
        'counts': {'x': 3},
    }
    assert shards.count_rows([path]) == 3
    assert shards.count_rows([path, path / 'rows-00000.jsonl']) is None


def test_a_funnel_that_does_not_add_up_is_a_bug():
    with pytest.raises(AssertionError):
        ShardCounts(3, 1, 1, {'odd': 1})


def test_it_goes_on_after_what_is_written(tmp_path):
    path = written(tmp_path / 'out', 2, finish=False)
    (path / '.rows-00002.tmp.jsonl').write_text('half a')
    with shards.open_writer(path, MANIFEST) as target:
        assert len(target.manifest.shards) == 2
        assert target.manifest.total.items == 4
        assert not target.manifest.complete


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'stage': 'other'}, "made by the stage 'some', not by 'other'"),
        ({'settings': {'a': 2, 'b': {'c': [1, 2]}}}, 'made with a = 1, not 2'),
        ({'settings': {'a': 1, 'b': {'c': [1, 3]}}}, 'made with b.c = [1, 2], not [1, 3]'),
        ({'seed': 1}, 'made with seed = 0, not 1'),
        ({'shard_items': 3}, 'made with shard_items = 2, not 3'),
        ({'inputs': 'another'}, 'made from other inputs'),
    ],
)
def test_a_directory_of_another_run_is_refused(tmp_path, changes, message):
    path = written(tmp_path / 'out')
    with (
        pytest.raises(UserError) as error,
        shards.open_writer(path, dataclasses.replace(MANIFEST, **changes)),
    ):
        pass
    assert f'{path} was {message}' in str(error.value)
    assert '\n' not in str(error.value)


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='is not empty and has no manifest of a stage'):
        shards.open_writer(tmp_path, MANIFEST).__enter__()
    with pytest.raises(UserError, match='is not a directory'):
        shards.open_writer(tmp_path / 'notes.txt', MANIFEST).__enter__()


def test_two_at_once_are_refused(tmp_path):
    with (
        shards.open_writer(tmp_path / 'out', MANIFEST),
        pytest.raises(UserError, match='Another process writes to'),
    ):
        shards.open_writer(tmp_path / 'out', MANIFEST).__enter__()
    with shards.open_writer(tmp_path / 'out', MANIFEST):
        pass


def test_what_is_not_complete_is_not_read(tmp_path):
    path = written(tmp_path / 'out', finish=False)
    for read in (lambda: list(shards.read([path])), lambda: shards.digest([path])):
        with pytest.raises(UserError, match=r"is not complete: repeat the command of .* 'some'"):
            read()


def test_a_shard_that_was_changed_is_found(tmp_path):
    path = written(tmp_path / 'out')
    shard = path / 'rows-00001.jsonl'
    shard.write_text(shard.read_text('utf-8').replace('1', '7'), 'utf-8')
    with pytest.raises(UserError, match=r'rows-00001.jsonl is missing or was changed'):
        list(shards.read([path]))
    with pytest.raises(UserError, match=r'rows-00001.jsonl is missing or was changed'):
        shards.open_writer(path, MANIFEST).__enter__()


def test_where_nothing_is_written_yet_another_input_may_be_taken(tmp_path):
    path = written(tmp_path / 'out', 0, finish=False)
    other = dataclasses.replace(MANIFEST, inputs='mended')
    with shards.open_writer(path, other) as target:
        assert target.manifest.inputs == 'mended'
    assert shards.read_manifest(path).inputs == 'mended'


@pytest.mark.parametrize(
    'old, new',
    [
        ('"rows": 1', '"rows": 7'),
        ('"rows": 1', '"rows": "1"'),
        ('"items": 2', '"items": 3'),
        ('"dropped": {\n        "odd": 1\n      }', '"dropped": null'),
        ('"first": {\n        "odd": "file:0"\n      }', '"first": null'),
        ('"x": 0', '"x": "0"'),
        ('"settings": {', '"settings": [1], "s": {'),
    ],
)
def test_a_manifest_that_was_changed_is_found(tmp_path, old, new):
    path = written(tmp_path / 'out')
    manifest = path / 'manifest.json'
    text = manifest.read_text()
    manifest.write_text(text.replace(old, new, 1))
    assert manifest.read_text() != text
    with pytest.raises(UserError, match=r'manifest\.json(:| has counts).+: restore it, or remove '):
        shards.read_manifest(path)


@pytest.mark.parametrize('content', ['{}', '[]', '{"total": {}, "shards": [{"items": 2}]}', 'x'])
def test_a_manifest_that_is_none(tmp_path, content):
    (tmp_path / 'manifest.json').write_text(content)
    with pytest.raises(UserError, match=r'manifest\.json(:| is n)'):
        shards.read_manifest(tmp_path)


@pytest.mark.parametrize(
    'line, message',
    [
        (b'{"a": 1', ':3 is not valid JSON ('),
        (b'[1]', ':3 is not a JSON object.'),
        (b'{"a": "\xff"}', ':3 is not UTF-8.'),
        (b'[' * 100_000, ':3 is n'),
        (b'{"a": ' + b'1' * 5000 + b'}', ':3 has a number with too many digits.'),
        (b'{"a": ["\\uD800"]}', ':3 contains an unpaired surrogate, which is not valid'),
    ],
)
def test_a_line_that_is_no_row(tmp_path, line, message):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError) as error:
        list(shards.read([path]))
    assert str(error.value).startswith(f'{path}{message}')


@pytest.mark.parametrize(
    'fields, message',
    [
        ({}, "has no 'text'"),
        ({'text': 3}, "must have a string as 'text'"),
        ({'text': '\ud800'}, 'unpaired surrogate'),
    ],
)
def test_a_field_that_is_no_text(fields, message):
    with pytest.raises(UserError) as error:
        shards.text_field(Row('rows.jsonl:1', fields), 'text')
    assert 'rows.jsonl:1' in str(error.value) and message in str(error.value)


def test_what_can_be_read_can_be_written(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text(r'{"a": NaN, "b": "\ud83d\ude00"}')
    [row] = shards.read([path])
    assert row.fields == {'a': None, 'b': '😀'}


def test_an_id_of_two_rows(tmp_path):
    one = write_rows(tmp_path / 'one.jsonl', [{'id': 'a'}, {'id': 'b'}, {}, {}])
    two = write_rows(tmp_path / 'two.jsonl', [{'id': 'c'}, {'id': 'a'}])
    assert len(list(shards.ensure_unique_ids(shards.read([one])))) == 4
    with pytest.raises(UserError, match=r"two\.jsonl:2: an earlier row has the same id 'a'"):
        list(shards.ensure_unique_ids(shards.read([one, two])))


def test_the_digest_is_of_content_and_order(tmp_path):
    one = write_rows(tmp_path / 'one.jsonl', [{'a': 1}])
    two = write_rows(tmp_path / 'two.jsonl', [{'a': 2}])
    moved = write_rows(tmp_path / 'moved.jsonl', [{'a': 1}])
    assert shards.digest([one]) == shards.digest([moved])
    assert shards.digest([one, two]) != shards.digest([two, one])
    expected = hashlib.sha256(hashlib.sha256(one.read_bytes()).hexdigest().encode()).hexdigest()
    assert shards.digest([one]) == expected
    folder = tmp_path / 'folder' / 'inner'
    folder.mkdir(parents=True)
    before = shards.digest([tmp_path / 'folder'])
    write_rows(folder / 'x', [{'a': 1}])
    assert shards.digest([tmp_path / 'folder']) == shards.digest([one]) != before
    with contextlib.suppress(UserError):
        shards.digest([tmp_path / 'none'])
        raise AssertionError
