"""The rejects files: their content for each stage, and their bytes after interruptions."""

import asyncio
import collections
import json
import os

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import criteria, shards, stage
from malora_jax.ultralink.criteria import CriteriaConfig
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.evaluation.judge import JudgeConfig
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.manifest import read_manifest
from malora_jax.ultralink.prune import PruneConfig
from malora_jax.ultralink.release_import import ImportConfig
from malora_jax.ultralink.stage import ItemOutcome, StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.translate import TranslateConfig
from tests.helpers.openai_stub import document, texts
from tests.ultralink.helpers import FakeModel, WordCounter, contents, write_rows

ENGLISH = 'The canal was dug by many hands and carried grain to the city every week of the year.'
GERMAN = 'Der Kanal wurde von vielen Händen gegraben und brachte jede Woche Getreide in die Stadt.'


def rejects(directory):
    """Return the rows of the rejects files, read without the project's reader."""
    files = sorted(directory.glob('rejects-*.jsonl'))
    return [json.loads(line) for file in files for line in file.open(encoding='utf-8')]


def run(name, config, rows, path, answer=None, **options):
    """Run a stage on rows, check that rejects and counts agree, and return the rejects by id."""
    source = write_rows(path / 'in.jsonl', rows)
    if answer:
        options['model'] = FakeModel(answer)
    given = StageRun(config, [source], path / 'out', token_counter=WordCounter(), **options)
    total = asyncio.run(STAGES[name].run(given)).total
    found = rejects(path / 'out')
    assert collections.Counter(row['reason'] for row in found) == total.dropped
    assert [row['stage'] for row in found] == [name] * len(found)
    assert all(isinstance(row['attempts'], int) for row in found)
    return {row['id']: row for row in found}


def conversation(identifier, *data, language='en', subset='math'):
    return {'id': identifier, 'language': language, 'subset': subset, 'data': list(data)}


def test_documents(tmp_path):
    words = tmp_path / 'words.txt'
    words.write_text('sword\n')
    done = write_rows(tmp_path / 'done.jsonl', [{'title': 'Done'}])
    long = {'title': 't', 'text': f'{ENGLISH} ' * 20}
    rows = [
        {'id': 'короткий', 'title': 't', 'text': 'Слишком коротко.'},
        {'id': 7, 'title': 't', 'text': ENGLISH},
        {'id': 'long', 'title': 't', 'text': f'{ENGLISH} ' * 40},
        {'id': '德语', 'title': 't', 'text': f'{GERMAN} ' * 20},
        {**long, 'id': 'listed', 'text': f'{long["text"]} A Sword.'},
        {**long, 'id': 'done', 'title': 'Done'},
        {**long, 'id': 'kept'},
    ]
    config = DocumentsConfig(
        'en',
        min_document_tokens=40,
        max_document_tokens=500,
        min_segment_tokens=10,
        words=[words],
        done=[done],
    )
    found = run('documents', config, rows, tmp_path)
    assert {key: (row['reason'], row['detail']) for key, row in found.items()} == {
        'короткий': ('short', '30 bytes, so fewer than 40 tokens'),
        '7': ('short', '18 tokens, fewer than 40'),
        'long': ('long', '720 tokens, more than 500'),
        '德语': ('language', 'de with confidence 1.00, not en'),
        'listed': ('listed word', 'Sword'),
        'done': ('done already', "title 'Done'"),
    }
    assert found['короткий']['location'] == 'in.jsonl:1'
    assert found['короткий']['text'] == 'Слишком коротко.'
    # Long documents are quoted from their beginning.
    assert found['long']['text'] == f'{(ENGLISH + " ") * 40}'[:300] + '…'
    assert 'Слишком коротко.' in (tmp_path / 'out' / 'rejects-00000.jsonl').read_text('utf-8')


def test_dialogues(tmp_path):
    said = texts()
    replies = {
        'de': Reply(GERMAN[:-1] + '?', 'stop', 1),
        'cites': Reply('According to the text, why was the canal dug?', 'stop', 1),
        'short': Reply('Why?', 'stop', 1),
        'two': Reply('Why was the canal dug? And by whom?', 'stop', 1),
        'cut': Reply('Why was the', 'length', 1),
    }
    rows = [
        {'id': key, 'language': 'en', 'title': key, 'text': f'{key}: {said["en"]["answers"][0]}'}
        for key in (*replies, 'full')
    ]
    rows[-1]['text'] *= 9

    def answer(request):
        asked = request.messages[-1].content
        return next(reply for key, reply in replies.items() if f'{key}: ' in asked)

    config = DialoguesConfig(attempts=2, context_tokens=400)
    found = run('dialogues', config, rows, tmp_path, answer)
    details = {key: (row['reason'], row['detail'], row['attempts']) for key, row in found.items()}
    assert details.pop('full')[::2] == ('context full', 0)
    assert details == {
        'de': ('question: language', 'de with confidence 1.00, not en', 2),
        'cites': ('question: speaks of the text', "'According to the text'", 2),
        'short': ('question: length', '4 characters', 2),
        'two': ('question: not one question', '2 question marks', 2),
        'cut': ('question: truncated', '', 2),
    }
    assert {key: found[key]['text'] for key in replies} == {
        key: reply.text for key, reply in replies.items()
    }


def test_refusals_of_all_attempts(tmp_path):
    segment = {'id': 'a', 'language': 'en', 'title': 'a', 'text': texts()['en']['answers'][0]}
    replies = [
        Reply('Why?', 'stop', 1),
        Reply('According to the text, why was the canal dug?', 'stop', 1),
        Reply('Why was the', 'length', 1),
    ]
    found = run(
        'dialogues',
        DialoguesConfig(attempts=3),
        [segment, {**segment, 'id': 'b', 'text': ' '}],
        tmp_path,
        lambda request: replies[request.sample_index],
    )
    assert found['a']['reason'] == 'question: truncated'
    assert found['a']['refusals'] == [
        'length (4 characters)',
        "speaks of the text ('According to the text')",
        'truncated',
    ]
    assert found['b']['refusals'] == []


def test_refusals_are_those_of_the_request_that_failed(tmp_path):
    said = {'Good.': ('', 'Bien.'), 'I have 3 cups.': ("J'ai 4 tasses.", "J'ai 5 tasses.")}

    def answer(request):
        text = said[request.messages[-1].content][request.sample_index]
        return Reply(text, 'stop' if text else 'malformed', 1)

    rows = [conversation('a', 'Good.', 'I have 3 cups.')]
    found = run('translate', TranslateConfig('fr', attempts=2), rows, tmp_path, answer)
    assert found['a']['refusals'] == [
        'numbers: missing: 3; numbers: added: 4',
        'numbers: missing: 3; numbers: added: 5',
    ]


def test_translate(tmp_path):
    replies = {
        'I have 3 cups.': "J'ai 4 tasses.",
        ENGLISH: GERMAN,
        'Stop.': Reply('Arr', 'length', 1),
        'Good.': 'Bien.',
    }
    rows = [
        conversation('nombre', 'Good.', 'I have 3 cups.'),
        conversation('langue', ENGLISH, 'Good.'),
        conversation('fin', 'Stop.', 'Good.'),
    ]
    config = TranslateConfig('fr', attempts=2)
    found = run(
        'translate', config, rows, tmp_path, lambda request: replies[request.messages[-1].content]
    )
    assert {key: (row['reason'], row['detail'], row['text']) for key, row in found.items()} == {
        'nombre': (
            'numbers',
            'message 2: numbers: missing: 3; numbers: added: 4',
            "J'ai 4 tasses.",
        ),
        'langue': (
            'language',
            'message 1: language: de, not fr (de with confidence 1.00)',
            GERMAN,
        ),
        'fin': ('length', 'message 1: length: the reply is incomplete', 'Arr'),
    }
    assert {row['attempts'] for row in found.values()} == {2}


def test_criteria(tmp_path):
    scores = dict.fromkeys(criteria.CRITERIA, 0) | {'names': 1, 'places': 1}
    speakers = [{'from': speaker, 'value': 'Hi.'} for speaker in ('gpt', 'human')]
    rows = [
        conversation('link', 'See https://example.org.', ENGLISH * 2),
        conversation('met', ENGLISH, ENGLISH),
        conversation('unscored', ENGLISH, f'Well. {ENGLISH}'),
        conversation('brief', 'Hi.', 'Hi.'),
        {'id': 'order', 'conversations': speakers},
    ]

    def answer(request):
        return 'No.' if 'Well. ' in request.messages[-1].content else json.dumps(scores)

    found = run('criteria', CriteriaConfig(attempts=2), rows, tmp_path, answer)
    assert {key: (row['reason'], row['detail'], row['attempts']) for key, row in found.items()} == {
        'link': ('link', 'https://', 0),
        'met': ('several criteria', 'names, places', 1),
        'unscored': ('no scores', 'finish reason stop', 2),
        'brief': ('length', '7 characters', 0),
        'order': ('not in turn', 'speakers: gpt, human', 0),
    }
    assert found['unscored']['text'] == 'No.'
    assert found['unscored']['refusals'] == ['no scores (finish reason stop)'] * 2
    assert found['met']['text'].startswith('<user>\nThe canal')


def test_prune(tmp_path):
    words = document('fr', 0)['text'].split()
    rows = [
        conversation(key, ' '.join(words[start : start + 30]), 'Oui.', language='fr')
        for key, start in (('a', 0), ('b', 0), ('c', 40), ('d', 80))
    ]
    config = PruneConfig(math=1, math_near_duplicates='remove')
    found = run('prune', config, rows, tmp_path)
    assert (found['b']['reason'], found['b']['detail']) == ('near-duplicate', 'of a')
    others = [row for key, row in found.items() if key != 'b']
    assert [(row['reason'], row['detail']) for row in others] == [
        ('over the budget', '1 of 3 rows are kept')
    ] * 2


def test_judge(tmp_path):
    baseline = write_rows(tmp_path / 'baseline.jsonl', [{'id': '1', 'answer': 'Base.'}])
    rows = [{'id': '1', 'question': 'Why?', 'answer': 'Ours.'}]

    def answer(request):
        first = request.messages[-1].content.partition('<answer A>\n')[2]
        return '[[A]]' if first.startswith('Ours') else 'Cannot say.'

    config = JudgeConfig('en', baseline, attempts=3)
    found = run('judge', config, rows, tmp_path, answer)
    row = found['1']
    assert (row['reason'], row['detail']) == ('no verdict', 'baseline answer in first place')
    assert (row['text'], row['attempts']) == ('Cannot say.', 3)
    assert row['refusals'] == ['no verdict (finish reason stop)'] * 3


def test_import(tmp_path):
    source = tmp_path / 'zh_math.jsonl'
    lines = ['{"id": "zh_math_0", "data": ["问"]}', '{"id": "坏', '{"id": "zh_math_1", "data": 3}']
    source.write_text('\n'.join(lines), 'utf-8')
    given = StageRun(ImportConfig(), [source], tmp_path / 'out')
    asyncio.run(STAGES['import'].run(given))
    found = rejects(tmp_path / 'out')
    assert [(row['id'], row['text']) for row in found] == [
        ('zh_math_0', lines[0]),
        ('', lines[1]),
        ('zh_math_1', lines[2]),
    ]
    assert 'odd number of messages' in found[0]['detail']


def test_a_text_that_utf_8_cannot_encode(tmp_path):
    async def process(row):
        return ItemOutcome(reason='odd', detail='\ud800', text='half \udcff')

    source = write_rows(tmp_path / 'in.jsonl', [{'id': 'a'}])
    asyncio.run(stage.run('some', process, [source], tmp_path / 'out', settings={}))
    assert [(row['detail'], row['text']) for row in rejects(tmp_path / 'out')] == [('?', 'half ?')]


class Killed(BaseException):
    """The end of the process in the middle of a write."""


async def third(row):
    """Drop two of three items, so that some shards have only dropped items and others have none."""
    number = row.fields['id']
    if number % 3 or number < 6:
        return ItemOutcome(reason=f'r{number % 3}', detail=str(number), text='é' * number)
    return ItemOutcome([row.fields])


@pytest.mark.parametrize('is_replaced', [False, True])
def test_the_same_bytes_wherever_a_write_was_interrupted(tmp_path, monkeypatch, is_replaced):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(20)])

    def run_some(output, **how):
        how = {'settings': {}, 'shard_items': 2, **how}
        return asyncio.run(stage.run('some', third, [source], output, **how))

    run_some(tmp_path / 'whole', concurrency=5)
    whole = contents(tmp_path / 'whole')
    assert 'rejects-00003.jsonl' in whole and 'rows-00009.jsonl' in whole
    replace, interruptions = os.replace, 0

    def interrupted(old, new):
        nonlocal interruptions
        if is_replaced:
            replace(old, new)
        interruptions += 1
        raise Killed

    # Each attempt gets one write further than the attempt before it.
    for number in range(200):
        remaining = number

        def killing(old, new):
            nonlocal remaining
            remaining -= 1
            return interrupted(old, new) if remaining < 0 else replace(old, new)

        monkeypatch.setattr(os, 'replace', killing)
        output = tmp_path / f'killed-{number}'
        try:
            run_some(output)
        except Killed:
            monkeypatch.setattr(os, 'replace', replace)
            run_some(output, concurrency=3)
            assert contents(output) == whole
        else:
            break
    assert interruptions == number >= 20


def test_a_file_that_a_run_with_other_settings_left_is_removed(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(2)])

    async def keep(row):
        return ItemOutcome([row.fields])

    (tmp_path / 'out').mkdir()
    asyncio.run(stage.run('some', keep, [source], tmp_path / 'other', settings={}))
    manifest = json.loads((tmp_path / 'other' / 'manifest.json').read_text())
    empty = {**manifest['total'], 'items': 0, 'kept': 0, 'rows': 0}
    manifest |= {'shards': [], 'complete': False, 'total': empty}
    (tmp_path / 'out' / 'manifest.json').write_text(json.dumps(manifest))
    (tmp_path / 'out' / 'rejects-00000.jsonl').write_text('{}\n')
    asyncio.run(stage.run('some', keep, [source], tmp_path / 'out', settings={}))
    assert sorted(contents(tmp_path / 'out')) == ['manifest.json', 'rows-00000.jsonl']


def test_the_summary_has_the_ids_of_the_first_dropped_items(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(12)])
    made = asyncio.run(
        stage.run('some', third, [source], tmp_path / 'out', settings={}, shard_items=5)
    )
    lines = stage.format_counts(made, tmp_path / 'out').splitlines()
    assert lines[1:] == [
        '  dropped, r0: 2 (the first: in.jsonl:1, id 0)',
        '  dropped, r1: 4 (the first: in.jsonl:2, id 1)',
        '  dropped, r2: 4 (the first: in.jsonl:3, id 2)',
    ]


def test_rejects_that_disagree_with_the_manifest(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(8)])
    output = tmp_path / 'out'
    asyncio.run(stage.run('some', third, [source], output, settings={}))
    manifest = read_manifest(output)
    assert len(list(shards.read_rejects(output, manifest))) == 7
    assert shards.count_unrecorded(output, manifest) == 0
    file = output / 'rejects-00000.jsonl'
    file.write_text(file.read_text('utf-8').replace('"r1"', '"r2"', 1), 'utf-8')
    with pytest.raises(UserError, match=r'rejects-00000.jsonl was changed after it was written'):
        list(shards.read_rejects(output, manifest))
    # Earlier versions wrote no such file.
    file.unlink()
    assert list(shards.read_rejects(output, manifest)) == []
    assert shards.count_unrecorded(output, manifest) == 7
    asyncio.run(stage.run('some', third, [source], output, settings={}))
