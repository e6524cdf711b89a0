"""Reading documents from each kind of file, and malformed files."""

import bz2
import gzip
import html

import pyarrow
import pytest
from pyarrow import parquet

from malora_jax.errors import UserError
from malora_jax.ultralink.text import wikipedia
from tests.ultralink.helpers import write_rows

DOCUMENTS = [
    {'id': '12', 'title': 'A & "B"', 'text': 'A & "B"\n\nThe <b>first</b>\u2028line.\nAnother é.'},
    {'id': '13', 'title': 'Пустой', 'text': ''},
    {'id': '14', 'title': '第三', 'text': '一行。'},
]


def extracted(documents):
    """Return the documents in WikiExtractor's format."""
    return ''.join(
        f'<doc id="{d["id"]}" url="https://x.org/?a=1&amp;b=2" title="{html.escape(d["title"])}">\n'
        f'{html.escape(d["text"], quote=False)}\n\n</doc>\n'
        for d in documents
    )


def fields(rows):
    return [{name: row.fields[name] for name in ('id', 'title', 'text')} for row in rows]


def test_every_kind_of_file_has_the_same_documents(tmp_path):
    folder = tmp_path / 'wiki' / 'AA'
    folder.mkdir(parents=True)
    (folder / 'wiki_00').write_text(extracted(DOCUMENTS[:2]), 'utf-8')
    (folder / 'wiki_01').write_text('\n' + extracted(DOCUMENTS[2:]), 'utf-8')
    (folder / '.hidden').write_text('x')
    marked = tmp_path / 'marked'
    marked.write_text(extracted(DOCUMENTS), 'utf-8-sig')
    lines = write_rows(tmp_path / 'wiki_json', DOCUMENTS)
    table = tmp_path / 'train-00000.parquet'
    parquet.write_table(pyarrow.Table.from_pylist([{'url': 'x', **d} for d in DOCUMENTS]), table)
    for path in (tmp_path / 'wiki', marked, lines, table):
        assert fields(wikipedia.read([path])) == DOCUMENTS
    both = list(wikipedia.read([tmp_path / 'wiki', lines]))
    assert fields(both) == DOCUMENTS * 2
    assert both[1].location == f'{folder}/wiki_00:8'
    assert both[2].location == f'{folder}/wiki_01:2'


@pytest.mark.parametrize('suffix, compress', [('gz', gzip.compress), ('bz2', bz2.compress)])
def test_compressed_files(tmp_path, suffix, compress):
    marked, lines = (tmp_path / f'{name}.{suffix}' for name in ('wiki_00', 'wiki_01'))
    marked.write_bytes(compress(extracted(DOCUMENTS).encode()))
    lines.write_bytes(compress(write_rows(tmp_path / 'lines', DOCUMENTS).read_bytes()))
    (tmp_path / 'lines').unlink()
    rows = list(wikipedia.read([tmp_path]))
    assert fields(rows) == DOCUMENTS * 2
    assert rows[1].location == f'{marked}:8' and rows[-1].location == f'{lines}:3'


@pytest.mark.parametrize(
    'text, message',
    [
        (
            '<doc id="1" url="u" title="t">\nText\n',
            ':1: the document that begins here has no </doc>.',
        ),
        (
            '<doc id="1" title="t">\na\n</doc>\n<doc id="2" title="u">\nb\n<doc id="3" title="">\n',
            ':4: the document that begins here has no </doc>.',
        ),
        ('<doc id="1" title="t">\na\n</doc>\nstray\n', ':4 must begin a document as <doc'),
        ('<doc id="1">\na\n</doc>\n', ':1 must begin a document as <doc'),
        ('<html>\n', ':1 must begin a document as <doc'),
        ('<mediawiki xmlns="x">\n', ':1 is a dump of MediaWiki: extract its text with Wiki'),
        ('</doc>\n', ':1 must begin a document as <doc'),
        ('{"id": "1", "title": "t", "text": "x"}\n{"id"\n', ':2 is not valid JSON'),
        ('Some text.\n', ':1 is not valid JSON'),
    ],
)
def test_what_is_malformed_is_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / 'wiki_00'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        list(wikipedia.read([path]))
    assert str(error.value).startswith(f'{path}{message}')
    assert '\n' not in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / 'wiki_00'
    path.write_bytes(b'<doc id="1" title="t">\na\n\xff\n</doc>\n')
    with pytest.raises(UserError, match=r'wiki_00:3 is not UTF-8'):
        list(wikipedia.read([path]))


def test_what_is_missing(tmp_path):
    with pytest.raises(UserError, match='There is no data file'):
        list(wikipedia.read([tmp_path / 'none']))
    with pytest.raises(UserError, match='has no files'):
        list(wikipedia.read([tmp_path]))


def test_a_large_file_is_read_piece_by_piece(tmp_path):
    path = tmp_path / 'wiki_00'
    path.write_text(
        extracted([{'id': str(i), 'title': 't', 'text': 'x'} for i in range(5)]) + '<doc'
    )
    rows = wikipedia.read([path])
    assert [next(rows).fields['id'] for _ in range(5)] == ['0', '1', '2', '3', '4']
    with pytest.raises(UserError, match=':21 must begin'):
        next(rows)
