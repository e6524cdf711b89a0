"""The commands after `dialogues`, as a user runs them: from English to a release and a report."""

import json

import pytest

from malora_jax.ultralink import paper_statistics
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.criteria import CRITERIA
from tests.helpers.openai_stub import serve_stub
from tests.ultralink import translated_texts
from tests.ultralink.conversations import conversation
from tests.ultralink.helpers import read_rows, run, run_successfully, write_rows

pytestmark = pytest.mark.slow

CHAT = 'I sleep 8 hours and still feel tired. What could help me to stay awake? Number '


def answer(body):
    """Score a conversation, or answer in French."""
    text = body['messages'][-1]['content']
    if text.startswith('<user>'):
        return json.dumps({**dict.fromkeys(CRITERIA, 0), 'names': int('Number 3' in text)})
    return (
        translated_texts.MATHS.translations['fr']
        if text == translated_texts.MATHS.english
        else 'Je ne sais pas.'
    )


def test_from_english_to_a_report(tmp_path, weights):
    chat = [
        {**conversation('en', 'chat_agnostic', n), 'data': [f'{CHAT}{n}', 'Walk, and take breaks.']}
        for n in range(5)
    ]
    maths = {**conversation('en', 'math', 0), 'data': 2 * [translated_texts.MATHS.english]}
    chats = write_rows(tmp_path / 'chat.jsonl', chat)
    english = write_rows(tmp_path / 'maths.jsonl', [maths])
    with serve_stub(answer=answer) as stub:
        model = ('--llm=m', f'--base-url={stub.address}')
        out = run_successfully('criteria', f'--input={chats}', f'--output={tmp_path}/kept', *model)
        assert out.startswith('criteria: 5 items, 4 kept, 4 rows\n  dropped, names: 1')
        out = run_successfully(
            'translate',
            '--language=fr',
            f'--input={tmp_path}/kept,{english}',
            f'--output={tmp_path}/french',
            *model,
        )
    # The stub's reply to chats keeps neither the numbers nor the language.
    assert out.startswith('translate: 5 items, 1 kept, 1 rows\n  dropped, numbers: 4')
    assert '  fault: numbers: 12' in out
    rest = [
        conversation(language, subset, n)
        for language in paper_statistics.LANGUAGES
        for subset in SUBSETS
        for n in range(2)
    ]
    rows = write_rows(tmp_path / 'rest.jsonl', rest)
    out = run_successfully(
        'prune', f'--input={rows},{tmp_path}/french', f'--output={tmp_path}/pruned', '--math=1'
    )
    assert '| fr | math | 3 | 0 | 2 | 1 |' in out and '| all |  | 41 | 0 | 5 | 36 |' in out
    out = run_successfully('export', f'--input={tmp_path}/pruned', f'--output={tmp_path}/release')
    assert 'fr_math.jsonl: 1 rows' in out and len(out.splitlines()) == 20
    out = run_successfully('import', f'--input={tmp_path}/release', f'--output={tmp_path}/imported')
    assert out.startswith('import: 36 items, 36 kept, 36 rows')
    assert len(read_rows(tmp_path / 'imported')) == 36
    out = run_successfully(
        'report',
        f'--input={tmp_path}/imported',
        f'--stages={tmp_path}/kept,{tmp_path}/french,{tmp_path}/pruned,{tmp_path}/imported',
        f'--tokenizer={weights}',
        f'--output={tmp_path}/report',
    )
    assert '| all | 10 (147K) | 10 (112K) | 6 (523K) | 10 (250K) | 36 (1,032K) |' in out
    assert '| dropped: numbers | 4 | 80.0% |' in out
    assert (tmp_path / 'report' / 'lengths.png').exists()


def test_the_english_rows_of_public_datasets_are_all_released(tmp_path, weights):
    """The release has all English rows, and the translations of those that are selected."""
    turns = [
        {'from': speaker, 'value': text}
        for speaker, text in (('gpt', 'Hi.'), ('human', CHAT), ('gpt', 'Walk, and take breaks.'))
    ]
    chats = [
        {'id': f'chat-{n}', 'conversations': [*turns, {'from': 'human', 'value': f'Number {n}'}]}
        for n in range(4)
    ]
    chats.append({'id': 'chat-0', 'conversations': turns})
    math = {'query': translated_texts.MATHS.english, 'response': translated_texts.MATHS.english}
    code = {'instruction': 'Print 1 in Python.', 'response': '```python\nprint(1)\n```'}
    files = {
        'chat': tmp_path / 'sharegpt.json',
        'math': write_rows(tmp_path / 'MetaMathQA.jsonl', 3 * [math]),
        'code': write_rows(tmp_path / 'magicoder.jsonl', [code]),
    }
    files['chat'].write_text(json.dumps(chats))
    home = tmp_path / 'data'
    for subset, path in files.items():
        out = run_successfully('import', f'--input={path}', f'--output={home}/en/{subset}')
        if subset == 'chat':
            assert 'repair: answers before the first question removed: 5' in out
            assert 'repair: last question without an answer removed: 4' in out
            assert 'repair: id made unique: 1' in out
    with serve_stub(answer=answer) as stub:
        model = ('--llm=m', f'--base-url={stub.address}')
        out = f'--output={home}/en/agnostic'
        run_successfully('criteria', f'--input={home}/en/chat', out, *model)
        out = f'--output={home}/fr/math'
        run_successfully('translate', '--language=fr', f'--input={home}/en/math', out, *model)
    rows = [*(f'{home}/en/{subset}' for subset in files), f'{home}/fr/math']
    run_successfully('prune', f'--input={",".join(rows)}', f'--output={home}/pruned')
    out = run_successfully('export', f'--input={home}/pruned', f'--output={home}/release')
    # Each row is also in the file of the translations, because near-duplicates in math are kept.
    assert sorted(out.splitlines()) == [
        'en_chat_agnostic.jsonl: 5 rows',
        'en_code.jsonl: 1 rows',
        'en_math.jsonl: 3 rows',
        'fr_math.jsonl: 3 rows',
    ]
    out = run_successfully('import', f'--input={home}/release', f'--output={tmp_path}/imported')
    assert out.startswith('import: 12 items, 12 kept, 12 rows')
    out = run_successfully(
        'report',
        f'--input={tmp_path}/imported',
        f'--stages={home}/en/chat,{home}/pruned',
        f'--tokenizer={weights}',
        f'--output={tmp_path}/report',
    )
    assert '| en | 0 (10K) | 5 (67K) | 3 (395K) | 1 (186K) | 9 (658K) |' in out
    assert f"Tokens are those of {weights}, but the paper's are those of cl100k" in out
    out = run_successfully('explain', 'fr_math_2', f'--stages={home}')
    assert 'kept as fr-MetaMathQA-3' in out and 'released as fr_math_2' in out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['translate', '--language=en', '--llm=m'], "translate.language is 'en'; it must be one"),
        (['import'], 'Give either --input, a folder, or --revision'),
        (['import', '--revision=main'], '--revision=main must be a full commit hash'),
        (['prune', '--input=none.jsonl', '--code=-1'], 'prune.code is -1; it must be at least 0'),
        (['export', '--input=a.jsonl,./a.jsonl'], '--input contains a.jsonl twice.'),
        (['export', '--input=none.jsonl'], 'There is no data file none.jsonl'),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    if arguments[0] == 'translate':
        arguments = [*arguments, '--input=none.jsonl']
    done = run(*arguments, f'--output={tmp_path}/out')
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(message) and done.stderr.count('\n') == 1, done.stderr
    assert not (tmp_path / 'out').exists()
