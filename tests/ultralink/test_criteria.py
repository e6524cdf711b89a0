"""The filter of conversations, with a fake model that returns given scores."""

import asyncio
import json

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import criteria
from malora_jax.ultralink.criteria import CRITERIA, CriteriaConfig
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.helpers import FakeModel, read_rows, write_rows

TEXT = 'I feel tired in the afternoon. What could help me to stay awake without any coffee at all?'
NONE = dict.fromkeys(CRITERIA, 0)


def row(number: int, text: str = TEXT):
    data = [f'{text} ({number})', 'A short walk, daylight and a glass of water help most people.']
    return {'id': f'{number}', 'language': 'en', 'subset': 'chat_agnostic', 'data': data}


def run(path, rows, say, **options):
    source, output, model = write_rows(path / 'rows.jsonl', rows), path / 'out', FakeModel(say)
    config = CriteriaConfig(**options)
    given = StageRun(config, [source], output, model=model, concurrency=2)
    manifest = asyncio.run(STAGES['criteria'].run(given))
    return read_rows(output), manifest.total, model.requests


def test_only_a_total_of_zero_is_kept(tmp_path):
    scores = [NONE, *({**NONE, name: 1} for name in CRITERIA), {**NONE, 'names': 1, 'places': 1}]

    def say(request):
        number = int(request.messages[-1].content.split('(')[1].split(')')[0])
        return json.dumps(scores[number])

    rows = [row(n) for n in range(len(scores))]
    found, total, requests = run(tmp_path, rows, say)
    assert found == rows[:1]
    assert total.dropped == {**dict.fromkeys(sorted(CRITERIA), 1), 'several criteria': 1}
    assert total.counts['criterion: names'] == total.counts['criterion: places'] == 2
    assert total.counts['criterion: culture'] == 1
    assert len(requests) == len(rows)
    assert '<user>\nI feel tired' in requests[0].messages[-1].content


@pytest.mark.parametrize(
    'text, reason',
    [
        ('short', 'length'),
        (400 * TEXT, 'length'),
        (f'{TEXT} See http://a.b', 'link'),
        (f'{TEXT} See HTTPS://a.b', 'link'),
        (f'{TEXT} See www.a.b', 'link'),
        (f'{TEXT} See example.com', 'link'),
        (3 * 'Je suis fatigué. Comment rester éveillé sans café ? ', 'language'),
    ],
)
def test_cheap_rules_come_before_the_model(tmp_path, text, reason):
    made = {**row(0), 'data': [text, 'Yes.']}
    found, total, requests = run(tmp_path, [made], lambda request: json.dumps(NONE))
    assert (found, total.dropped, requests) == ([], {reason: 1}, [])


@pytest.mark.parametrize(
    'said',
    [
        '',
        'All are 0.',
        '{"names": 0}',
        json.dumps({**NONE, 'other': 0}),
        json.dumps({**NONE, 'names': 2}),
        json.dumps({**NONE, 'names': True}),
        json.dumps({**NONE, 'names': '0'}),
        json.dumps(NONE) * 2,
        '{names: 0}',
        Reply(json.dumps(NONE), 'length', 1),
    ],
)
def test_an_answer_without_scores_is_asked_for_again(tmp_path, said):
    found, total, requests = run(
        tmp_path, [row(0)], lambda request: json.dumps(NONE) if request.sample_index == 2 else said
    )
    assert len(found) == 1 and [request.sample_index for request in requests] == [0, 1, 2]
    (tmp_path / 'never').mkdir()
    found, total, _ = run(tmp_path / 'never', [row(0)], lambda request: said)
    assert (found, total.dropped) == ([], {'no scores': 1})


def test_chats_of_sharegpt(tmp_path):
    said = [f'{TEXT} (0)', 'A short walk, daylight and a glass of water help most people.']

    def chat(identifier, *turns):
        turns = [{'from': speaker, 'value': text} for speaker, text in turns]
        return {'id': identifier, 'conversations': turns}

    both = list(zip(('human', 'gpt'), said, strict=True))
    chats = [
        chat('good_0', *both),
        chat('reversed', *both[::-1]),
        chat('unanswered', *both, both[0]),
        chat('nobody'),
        chat('silent', both[0], ('gpt', ' ')),
    ]
    # The last question of 'unanswered' is removed.
    rows = [{**row(0), 'id': name, 'data': said} for name in ('good_0', 'unanswered')]
    array = tmp_path / 'chats.json'
    array.write_text(json.dumps(chats))
    for source in (array, write_rows(tmp_path / 'chats.jsonl', chats)):
        output, model = tmp_path / source.suffix, FakeModel(lambda request: json.dumps(NONE))
        given = StageRun(CriteriaConfig(), [source], output, model=model)
        manifest = asyncio.run(STAGES['criteria'].run(given))
        assert read_rows(output) == rows
        assert manifest.total.dropped == {'not in turn': 3}
        assert manifest.total.counts == {'repair: last question without an answer removed': 1}


def test_a_row_without_a_language_is_english_chat(tmp_path):
    bare = {name: row(0)[name] for name in ('id', 'data')}
    assert run(tmp_path, [bare], lambda request: json.dumps(NONE))[0] == [row(0)]


@pytest.mark.parametrize('turns', [None, 1, 'text', [1], [{'from': 'human'}]])
def test_chats_of_another_form(tmp_path, turns):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: 'conversations' must be a list of turns"):
        run(tmp_path, [{'id': '0', 'conversations': turns}], lambda request: '')


def test_a_row_in_an_unknown_language_names_no_flag(tmp_path):
    row = {'id': 'a', 'language': 'it', 'subset': 'chat_agnostic', 'data': ['Ciao?', 'Ciao.']}
    with pytest.raises(UserError, match=r":1 has language 'it': give English conversations only.$"):
        run(tmp_path, [row], lambda request: '')


def test_words_around_the_scores_do_no_harm():
    reply = Reply(f'Here they are:\n```json\n{json.dumps(NONE, indent=1)}\n```', 'stop', 1)
    assert criteria.parse_scores(reply) == NONE


@pytest.mark.parametrize(
    'fields',
    [{'min_characters': -1}, {'max_characters': 9}, {'attempts': 0}, {'temperature': -1.0}],
)
def test_settings_that_cannot_be(fields):
    (name,) = fields
    with pytest.raises(UserError, match=f'{name} is'):
        CriteriaConfig(**fields)
