"""Translations by a fake model with given answers, faults included."""

import asyncio
import collections

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import translation_checks, translations
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text import spans
from malora_jax.ultralink.text.language_identification import identify_language
from malora_jax.ultralink.translate import TranslateConfig
from tests.ultralink import translated_texts
from tests.ultralink.helpers import FakeModel, read_rows, write_rows

LANGUAGES = translations.target_languages()
SUBSETS = {'maths': 'math', 'code': 'code'}


def row(name: str, number: int = 0, copies: int = 2):
    """Return an English conversation that repeats one text."""
    data = copies * [translated_texts.ALL[name].english]
    return {'id': f'{name}-{number}', 'language': 'en', 'subset': SUBSETS[name], 'data': data}


def right(language: str):
    """Return a function that gives the right translation of any of the texts."""
    known = {text.english: text.translations[language] for text in translated_texts.ALL.values()}
    return lambda request: known[request.messages[-1].content]


def run(path, rows, say, language='fr', **options):
    source, output = write_rows(path / 'rows.jsonl', rows), path / 'out'
    model = FakeModel(say)
    config = TranslateConfig(language, **options)
    given = StageRun(config, [source], output, model=model, concurrency=3)
    manifest = asyncio.run(STAGES['translate'].run(given))
    return read_rows(output), manifest.total, model.requests


@pytest.mark.parametrize('language', LANGUAGES)
@pytest.mark.parametrize('subset', translations.SUBSETS)
def test_the_demonstrations_have_no_fault_themselves(language, subset):
    prompt = translations.load(language, subset)
    assert not translation_checks.faults(
        prompt.source, prompt.translation, language, identify_language
    )
    assert identify_language(prompt.system) == language


@pytest.mark.parametrize('language', LANGUAGES)
def test_clean_translations_are_kept(tmp_path, language):
    found, total, requests = run(tmp_path, [row('maths'), row('code')], right(language), language)
    assert [made['id'] for made in found] == [f'{language}-maths-0', f'{language}-code-0']
    for made, text in zip(found, (translated_texts.MATHS, translated_texts.CODE), strict=True):
        assert made['language'] == language
        assert made['data'] == 2 * [text.translations[language]]
    assert (total.items, total.kept, total.counts) == (2, 2, {})
    assert len(requests) == 4


def test_each_text_is_asked_with_one_demonstration_and_the_text_before_it(tmp_path):
    _, _, requests = run(tmp_path, [row('maths')], right('fr'))
    first, second = requests
    prompt = translations.load('fr', 'math')
    english, french = translated_texts.MATHS.english, translated_texts.MATHS.translations['fr']
    assert [(message.role, message.content) for message in first.messages] == [
        ('system', prompt.system),
        ('user', prompt.source),
        ('assistant', prompt.translation),
        ('user', english),
    ]
    assert [(message.role, message.content) for message in second.messages[3:]] == [
        ('user', english),
        ('assistant', french),
        ('user', english),
    ]


# Faults of a model by the name under which they are counted; kinds of code are those of code.
FAULTS = {
    'numbers': ('maths', lambda text: text.replace('150', '15')),
    'final_answer': ('maths', lambda text: text.replace('#### 1102', '#### 1103')),
    'code': ('code', lambda text: text.replace('# Two more.', '# Deux de plus.')),
    'identifiers': ('code', lambda text: text.replace('sys.max_size', 'cela')),
    'language': ('code', lambda text: translated_texts.CODE.english),
    'length_ratio': ('code', lambda text: f'add_two, sys.max_size\n{spans.split(text).fences[0]}'),
    'empty': ('maths', lambda text: ''),
    'length': ('maths', lambda text: Reply(text, 'length', 1)),
    'content_filter': ('maths', lambda text: Reply('', 'content_filter', 1)),
}


@pytest.mark.parametrize('kind', FAULTS)
def test_a_fault_is_tried_again(tmp_path, kind):
    name, break_ = FAULTS[kind]
    say = right('fr')
    made, total, requests = run(
        tmp_path,
        [row(name)],
        lambda request: say(request) if request.sample_index else break_(say(request)),
    )
    assert made[0]['data'] == 2 * [translated_texts.ALL[name].translations['fr']]
    assert total.counts[f'fault: {kind}'] == 2
    assert [request.sample_index for request in requests] == [0, 1, 0, 1]


@pytest.mark.parametrize('kind', FAULTS)
def test_a_fault_that_stays_drops_the_conversation(tmp_path, kind):
    name, break_ = FAULTS[kind]
    say, broken = right('fr'), 0

    def sometimes(request):
        """Break every second text."""
        nonlocal broken
        second = len(request.messages) > 4
        broken += second
        return break_(say(request)) if second else say(request)

    made, total, requests = run(tmp_path, [row(name, n) for n in range(3)], sometimes, attempts=2)
    assert made == []
    (reason,) = total.dropped
    # A changed last line is also a changed number, which is detected first.
    assert reason == {'final_answer': 'numbers'}.get(kind, kind)
    assert (total.items, total.kept, total.dropped[reason]) == (3, 0, 3)
    assert total.counts[f'fault: {kind}'] == broken == 6
    assert collections.Counter(request.sample_index for request in requests) == {0: 6, 1: 3}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'language': 'fr'}, "jsonl:1 has language 'fr' and subset 'math': only English"),
        (
            {'language': 'it'},
            r"jsonl:1 has language 'it' and subset 'math': only English .* translated.$",
        ),
        ({'subset': 'chat_specific'}, "subset 'chat_specific': only English"),
        ({'data': []}, "jsonl:1: 'data' must be a non-empty list"),
    ],
)
def test_a_row_that_cannot_be_translated(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, [{**row('maths'), **change}], right('fr'))


@pytest.mark.parametrize(
    'language, options, message',
    [
        ('en', {}, 'translate.language'),
        ('xx', {}, "Unknown language 'xx'"),
        ('fr', {'attempts': 0}, 'translate.attempts'),
        ('fr', {'temperature': -1.0}, 'temperature'),
    ],
)
def test_settings_that_cannot_be(language, options, message):
    with pytest.raises(UserError, match=message):
        TranslateConfig(language, **options)
