"""The source of a conversation, from a document to a release and back."""

import asyncio
import json

import pytest

from malora_jax.data.file_rows import Row
from malora_jax.data.seeds import stable_seed
from malora_jax.errors import UserError
from malora_jax.ultralink import attribution, release_export, release_import
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.prune import PruneConfig
from malora_jax.ultralink.release_import import ImportConfig
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.translate import TranslateConfig
from tests.helpers.openai_stub import document, texts
from tests.ultralink import translated_texts
from tests.ultralink.helpers import FakeModel, WordCounter, read_rows, write_rows

URL = 'https://fr.wikipedia.org/wiki?curid='
WIKI = f'{URL}1'


def run(stage, config, inputs, output, **options):
    given = StageRun(config, inputs, output, token_counter=WordCounter(), **options)
    asyncio.run(STAGES[stage].run(given))
    return output


def import_(inputs, output):
    config = ImportConfig(input=inputs)
    run('import', config, release_import.find_inputs(config), output)
    return read_rows(output)


def dialogue(request):
    """Ask or answer in French."""
    asks = request.sampling.max_tokens == DialoguesConfig().question_tokens
    said = texts()['fr']['questions' if asks else 'answers']
    return said[stable_seed(0, str(request.messages), str(request.sample_index)) % len(said)]


def read_sources(release, name):
    return [json.loads(line) for line in (release / attribution.FOLDER / name).open()]


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """Path of a release with dialogues about articles and a translation, and the articles."""
    path = tmp_path_factory.mktemp('attribution')
    articles = [{**document('fr', n), 'url': f'{URL}{n}'} for n in range(4)]
    source = write_rows(path / 'wiki.jsonl', articles)
    config = DocumentsConfig('fr', min_document_tokens=50, min_segment_tokens=50, workers=1)
    documents = run('documents', config, [source], path / 'documents')
    model = FakeModel(dialogue)
    dialogues = run('dialogues', DialoguesConfig(), [documents], path / 'dialogues', model=model)
    math = [{'query': each.english, 'response': each.english} for each in (translated_texts.MATHS,)]
    english = path / 'english'
    public = ImportConfig(
        input=[write_rows(path / 'MetaMathQA.jsonl', math)], url='https://a.b', license='MIT'
    )
    run('import', public, public.input, english)
    model = FakeModel(lambda request: translated_texts.MATHS.translations['fr'])
    french = run('translate', TranslateConfig('fr'), [english], path / 'french', model=model)
    pruned = run(
        'prune', PruneConfig(min_similarity=1.0), [dialogues, english, french], path / 'pruned'
    )
    release_export.export([pruned], path / 'release')
    return path / 'release', articles


def test_each_released_dialogue_names_its_article(released):
    release, articles = released
    rows = [json.loads(line) for line in (release / 'fr_chat_specific.jsonl').open()]
    sources = read_sources(release, 'fr_chat_specific.sources.jsonl')
    assert len(rows) == len(sources) >= 4
    by_id = {article['id']: article for article in articles}
    for row, source in zip(rows, sources, strict=True):
        assert row['id'] == source['id'] and set(row) == {'id', 'data'}
        article = by_id[source['source']['id']]
        assert source['conversation'].startswith(f'fr-{article["id"]}-')
        assert source['source'] == {
            'id': article['id'],
            'title': article['title'],
            'url': article['url'],
            'license': 'CC BY-SA 4.0',
        }
        segment = row['data'][0].partition('<document>\n')[2].partition('\n</document>')[0]
        assert segment in article['text']


def test_a_translation_has_the_source_of_its_original(released):
    release, _ = released
    source = {'id': '1', 'title': 'MetaMathQA.jsonl', 'url': 'https://a.b', 'license': 'MIT'}
    for language, identifier in (('en', 'MetaMathQA-1'), ('fr', 'fr-MetaMathQA-1')):
        name = f'{language}_math'
        assert read_sources(release, f'{name}.sources.jsonl') == [
            {'id': f'{name}_0', 'conversation': identifier, 'source': source}
        ]


def test_the_data_card_counts_rows_and_licenses(released):
    release, _ = released
    text = (release / 'README.md').read_text('utf-8')
    number = len(read_sources(release, 'fr_chat_specific.sources.jsonl'))
    assert f'| `fr_chat_specific.jsonl` | {number} | CC BY-SA 4.0 ({number}) |' in text
    assert '| `en_math.jsonl` | 1 | MIT (1) |' in text


def test_sources_are_imported_again(released, tmp_path):
    release, _ = released
    folder = import_([release], tmp_path / 'folder')
    names = [name for name in release_export.FILE_NAMES if (release / name).exists()]
    files = import_([release / name for name in names], tmp_path / 'files')
    assert folder == files
    expected = [
        (source['id'], source['source'])
        for name in names
        for source in read_sources(release, name.replace('.jsonl', '.sources.jsonl'))
    ]
    assert [(row['id'], row['source']) for row in folder] == expected
    release_export.export([tmp_path / 'folder'], tmp_path / 'again')
    assert (tmp_path / 'again' / 'README.md').read_text() == (release / 'README.md').read_text()


def test_an_export_that_lacks_a_file(released, tmp_path):
    _, _ = released
    row = {'id': '1', 'language': 'fr', 'subset': 'math', 'data': ['q', 'a']}
    release_export.export([write_rows(tmp_path / 'rows.jsonl', [row])], tmp_path / 'out')
    (tmp_path / 'out' / 'fr_math.jsonl').unlink()
    with pytest.raises(UserError, match=r'out lacks fr_math\.jsonl: export it again'):
        import_([tmp_path / 'out'], tmp_path / 'imported')


def test_sources_of_other_rows_are_an_error(tmp_path):
    rows = [
        {
            'id': str(n),
            'language': 'fr',
            'subset': 'math',
            'data': ['q', 'a'],
            'source': {'id': 'x'},
        }
        for n in range(2)
    ]
    release_export.export([write_rows(tmp_path / 'rows.jsonl', rows)], tmp_path / 'out')
    released_file = tmp_path / 'out' / 'fr_math.jsonl'
    released_file.write_text(released_file.read_text().partition('\n')[2])
    message = r"fr_math\.sources\.jsonl:1 must have the id 'fr_math_1' of the same line"
    with pytest.raises(UserError, match=message):
        import_([released_file], tmp_path / 'imported')


@pytest.mark.parametrize(
    'fields, license_, source',
    [
        ({}, '', {}),
        ({}, 'MIT', {'license': 'MIT'}),
        ({'url': WIKI}, '', {'url': WIKI, 'license': 'CC BY-SA 4.0'}),
        ({'url': WIKI}, 'CC BY-SA 3.0', {'url': WIKI, 'license': 'CC BY-SA 3.0'}),
        ({'license': 'CC0', 'title': 3}, 'MIT', {'license': 'CC0'}),
    ],
)
def test_what_is_not_known_is_not_recorded(fields, license_, source):
    found = attribution.source_of(Row('f:1', fields), id='7', license=license_)
    assert found == {'id': '7', **source}
