"""The command `explain`: an item's way through directories of stages, in any script."""

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import release_export, shards
from malora_jax.ultralink.explain import explain, origin_id
from malora_jax.ultralink.manifest import ShardCounts, StageManifest


def stage_output(path, stage, rows, rejects=(), language=None, complete=True):
    """Write the output directory of a stage."""
    settings = {'language': language} if language else {}
    dropped = {}
    for row in rejects:
        dropped[row['reason']] = dropped.get(row['reason'], 0) + 1
    counts = ShardCounts(
        len(rows) + len(rejects), len(rows), dropped=dropped, first=dict.fromkeys(dropped, 'x')
    )
    with shards.open_writer(path, StageManifest(stage, settings, 0, 'digest', 100)) as writer:
        writer.add(rows, counts, rejects)
        if complete:
            writer.finish()
    return path


def test_a_dropped_item_has_its_attempts_and_the_command_for_its_requests(tmp_path):
    refusals = ['length (4 characters)', 'language (de, not fr)', 'truncated']
    row = {**reject("fr-l'1-0", 'question: truncated', attempts=3), 'refusals': refusals}
    kept = {'id': 'fr-2-0', 'language': 'fr', 'document': 'D', 'data': ['Q', 'A']}
    stage_output(tmp_path / 'fr' / 'dialogues', 'dialogues', [kept], [row])
    assert 'cache' not in explain("fr-l'1-0", [tmp_path])
    (tmp_path / 'fr' / 'answers.sqlite').touch()
    command = f'python -m experiments.ultralink cache --cache={tmp_path}/fr/answers.sqlite'
    assert explain("fr-l'1-0", [tmp_path]).splitlines()[1:] == [
        '  rejected: question: truncated, after 3 attempts; input in.jsonl:3',
        *(f'    attempt {number}: {text}' for number, text in enumerate(refusals, 1)),
        f"""  prompts and replies: {command} '--item=fr-l'"'"'1-0'""",
    ]
    lines = explain('fr-2-0', [tmp_path]).splitlines()
    assert lines[-1] == f'  prompts and replies: {command} --item=fr-2-0'


def test_a_document_may_be_given_with_its_language(data):
    for identifier, language in (('fr-12', 'fr'), ('ru-канал', 'ru')):
        found = sections(explain(identifier, [data / language]))
        kept = [f'kept as {identifier}-{number} (' for number in range(2)]
        lines = found[f'documents ({data}/{language}/documents)']
        assert [line.partition('rows')[0] for line in lines] == kept
    assert f'dialogues ({data}/ru/dialogues)' in found
    assert 'rejected: short (7 tokens' in explain('fr-9', [data / 'fr'])


def reject(identifier, reason, detail='', text='', attempts=0):
    return {
        'id': identifier,
        'stage': 'any',
        'location': 'in.jsonl:3',
        'reason': reason,
        'detail': detail,
        'attempts': attempts,
        'text': text,
    }


def conversation(identifier, language, *data, subset='math'):
    return {'id': identifier, 'language': language, 'subset': subset, 'data': list(data)}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A directory with the outputs of all stages, for French and Russian."""
    root = tmp_path_factory.mktemp('data')
    for language in ('fr', 'ru'):
        segments = [
            {'id': f'{language}-{document}-{number}', 'text': 'x'}
            for document in ('12', 'канал', '3')
            for number in range(2)
        ]
        stage_output(
            root / language / 'documents',
            'documents',
            segments,
            [reject('9', 'short', '7 tokens, fewer than 1000', 'Court.')],
            language,
        )
    dialogue = {'id': 'ru-канал-1', 'language': 'ru', 'document': 'Д', 'data': ['Зачем?', 'Так.']}
    stage_output(
        root / 'ru' / 'dialogues',
        'dialogues',
        [dialogue],
        [reject('ru-12-0', 'question: language', 'ar with confidence 0.98, not ru', 'لماذا؟', 3)],
    )
    english = [conversation(key, 'en', 'Q', 'A') for key in ('gsm8k-1', 'سؤال-1', '12')]
    stage_output(root / 'en' / 'chat', 'criteria', english)
    for language in ('fr', 'ru'):
        stage_output(
            root / language / 'translated',
            'translate',
            [conversation(f'{language}-gsm8k-1', language, f'{language}?', 'A')],
            [reject('سؤال-1', 'numbers', 'missing: 3', 'خطأ \x1b[31m\nسطر', 2)],
            language,
        )
    kept = [dialogue, conversation('ru-gsm8k-1', 'ru', 'ru?', 'A')]
    pruned = stage_output(
        root / 'pruned', 'prune', kept, [reject('fr-gsm8k-1', 'over the budget')], complete=False
    )
    files = [pruned / 'rows-00000.jsonl']
    release_export.export(files, root / 'release')
    return root


def sections(text):
    """Return the lines of each section by its heading, without the directories."""
    found, lines = {}, []
    for line in text.splitlines():
        if not line.startswith(' '):
            lines = found.setdefault(line, [])
        else:
            lines.append(line[2:])
    return found


def test_a_dialogue_from_the_document_to_the_release(data):
    found = sections(explain('ru-канал-1', [data]))
    without = found.pop('Outputs without this item:')
    assert found == {
        f'documents ({data}/ru/documents)': [
            'kept as ru-канал-0 (rows-00000.jsonl:3)',
            'kept as ru-канал-1 (rows-00000.jsonl:4)',
        ],
        f'dialogues ({data}/ru/dialogues)': ['kept as ru-канал-1 (rows-00000.jsonl:1)'],
        f'prune ({data}/pruned, not complete)': ['kept as ru-канал-1 (rows-00000.jsonl:1)'],
        f'export ({data}/release)': ['released as ru_chat_specific_0 (ru_chat_specific.jsonl:1)'],
    }
    assert without == [
        f'documents ({data}/fr/documents)',
        f'criteria ({data}/en/chat)',
        f'translate ({data}/fr/translated)',
        f'translate ({data}/ru/translated)',
    ]


def test_a_rejected_segment_in_two_scripts(data):
    text = explain('ru-12-0', [data])
    assert (
        '  rejected: question: language (ar with confidence 0.98, not ru), after 3 attempts; input '
        'in.jsonl:3\n      | لماذا؟\n'
    ) in text
    # The English conversation and the French document have the same number.
    assert 'en/chat' in text.partition('Outputs without')[2]
    assert 'export' not in text


def test_an_english_conversation_leads_to_all_its_translations(data):
    found = sections(explain('gsm8k-1', [data]))
    assert found[f'translate ({data}/fr/translated)'] == ['kept as fr-gsm8k-1 (rows-00000.jsonl:1)']
    assert found[f'translate ({data}/ru/translated)'] == ['kept as ru-gsm8k-1 (rows-00000.jsonl:1)']
    assert found[f'prune ({data}/pruned, not complete)'] == [
        'rejected: over the budget; input in.jsonl:3',
        'kept as ru-gsm8k-1 (rows-00000.jsonl:2)',
    ]
    assert found[f'export ({data}/release)'] == ['released as ru_math_0 (ru_math.jsonl:1)']


def test_a_translation_leads_to_its_source_but_not_to_other_translations(data):
    found = sections(explain('fr-gsm8k-1', [data]))
    assert f'criteria ({data}/en/chat)' in found
    assert f'translate ({data}/ru/translated)' in found['Outputs without this item:']
    assert found[f'prune ({data}/pruned, not complete)'] == [
        'rejected: over the budget; input in.jsonl:3'
    ]
    assert found[f'export ({data}/release)'] == ['not among the released rows']


def test_a_released_row_leads_to_its_document(data):
    for released, item in (('ru_chat_specific_0', 'ru-канал-1'), ('ru_math_0', 'ru-gsm8k-1')):
        assert explain(released, [data]) == explain(item, [data])


def test_control_characters_of_a_reply_do_not_reach_the_terminal(data):
    text = explain('سؤال-1', [data / 'fr' / 'translated'])
    assert '    | خطأ \ufffd[31m\n      | سطر' in text and '\x1b' not in text


def test_an_id_may_have_decomposed_accents(data, tmp_path):
    stage_output(tmp_path / 'out', 'criteria', [conversation('cafe\u0301', 'en', 'Q', 'A')])
    assert 'kept as café (rows-00000.jsonl:1)' in explain('caf\u00e9', [tmp_path])


def test_what_cannot_be_explained(data, tmp_path):
    with pytest.raises(UserError, match="has an item 'none'"):
        explain('none', [data])
    with pytest.raises(UserError, match='There is no directory'):
        explain('none', [tmp_path / 'none'])
    with pytest.raises(UserError, match='has no output of a stage'):
        explain('none', [tmp_path])


def test_an_output_of_an_earlier_version_has_no_rejects(tmp_path):
    kept = [conversation('a', 'en', 'Q', 'A')]
    old = stage_output(tmp_path / 'old', 'criteria', kept, [reject('b', 'link')])
    (old / 'rejects-00000.jsonl').unlink()
    stage_output(tmp_path / 'new', 'prune', [conversation('b', 'en', 'Q', 'A')])
    assert explain('b', [tmp_path]).endswith(
        f'  criteria ({old}): an earlier version did not record its dropped items (1)'
    )


@pytest.mark.parametrize(
    'stage, identifier, origin',
    [
        ('documents', 'fr-a-b-12', 'a-b'),
        ('documents', 'ru-a-12', None),
        ('documents', 'fr-a', None),
        ('translate', 'fr-a-12', 'a-12'),
        ('translate', 'ru-a', None),
        ('prune', 'ru-a', 'ru-a'),
    ],
)
def test_the_item_of_a_row(stage, identifier, origin):
    manifest = StageManifest(stage, {'language': 'fr'}, 0, '', 1)
    assert origin_id(manifest, identifier) == origin
