"""A sixth language through all stages: a TOML file, and no Python."""

import json

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import languages, prompts, translations
from malora_jax.ultralink.text import quantities
from tests.helpers.openai_stub import document, serve_stub
from tests.helpers.paths import FIXTURES
from tests.ultralink.helpers import read_rows, run, run_successfully, write_rows

ITALIAN = FIXTURES / 'ultralink_italian.toml'
QUESTIONS = [
    'Perché la Repubblica di Venezia costruì l’Arsenale nel dodicesimo secolo?',
    'In che modo gli artigiani dell’Arsenale di Venezia finivano una galea in un giorno?',
    'Quali conseguenze ebbe la caduta di Venezia nel 1797 per gli operai dell’Arsenale?',
    'Che cosa si trova oggi negli antichi cantieri navali dell’Arsenale di Venezia?',
    'Come veniva trasportato il legname dalle foreste del Cadore fino ai cantieri di Venezia?',
    'Quanto guadagnavano le donne che cucivano le vele per la flotta della Serenissima?',
]
ANSWERS = [
    'La Repubblica di Venezia voleva costruire e riparare le proprie navi in un luogo chiuso, '
    'protetto da mura alte e vicino al mare, così che nessun nemico potesse spiare i lavori.',
    'Ogni squadra svolgeva un solo compito: le galee avanzavano lungo un canale e ricevevano, una '
    'dopo l’altra, gli alberi, le vele, i remi e le provviste già preparati nei magazzini.',
    'Quando le truppe francesi occuparono la città, molti operai persero il lavoro e le macchine '
    'furono portate via; soltanto alcuni decenni più tardi i cantieri ripresero a lavorare.',
]
ENGLISH = 'Tom sold 5,000 shirts for $2.5 million in total. How many shirts did Tom sell?'
TRANSLATED = 'Luca ha venduto 5 mila camicie per 2,5 milioni di dollari. Quante ne ha vendute?'


def reply(body):
    """Answer the requests of all stages in Italian."""
    system, text = body['messages'][0]['content'], body['messages'][-1]['content']
    if text.endswith('Scrivi la risposta.'):
        return ANSWERS[text.count('Domanda: ') % len(ANSWERS)]
    if text.endswith(('domanda successiva.', 'prima domanda del dialogo.')):
        return QUESTIONS[text.count('Domanda: ') % len(QUESTIONS)]
    if 'Alla fine scrivi' in text:
        return 'Sono 2,5 + 1,5 pacchi. La risposta è 4.'
    assert system.startswith('Traduci in italiano il problema'), body
    return TRANSLATED


@pytest.fixture
def italian(tmp_path):
    """Path of a user's own language file."""
    path = tmp_path / 'it.toml'
    path.write_text(ITALIAN.read_text('utf-8'), 'utf-8')
    return path


def own_french() -> str:
    """Return the Italian file as that of another French, with demonstrations in French."""
    text = ITALIAN.read_text('utf-8')
    for old, new in {
        "code = 'it'": "code = 'fr'",
        "['es', 'fr', ": "['es', 'it', ",
        'Come posso dormire meglio se lavoro fino alle 10 di sera?': 'Comment puis-je mieux dormir '
        'si je travaille jusqu’à 10 heures du soir ?',
        'Giulia ha 12 mele e ne mangia 2. Quante mele restano?': 'Julie a 12 pommes et en mange 2. '
        'Combien de pommes lui reste-t-il ?',
        'Restano 12-2 = <<12-2=10>>10 mele.': 'Il reste 12-2 = <<12-2=10>>10 pommes.',
        'Che cosa restituisce': 'Que renvoie',
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_a_sixth_language_through_all_stages(tmp_path, weights, italian):
    one, rows = f'--language={italian}', f'--language-files={italian}'
    documents = [
        {'id': i, 'title': f'Arsenale {i}', 'text': '\n'.join(ANSWERS * 3)} for i in range(70)
    ]
    wiki = write_rows(tmp_path / 'wiki.jsonl', documents)
    maths = {'id': 'm1', 'language': 'en', 'subset': 'math', 'data': [ENGLISH, ENGLISH]}
    english = write_rows(tmp_path / 'maths.jsonl', [maths])
    problems = tmp_path / 'mgsm_it.tsv'
    problems.write_text('Anna ha 2,5 pacchi e Luca ne ha 1,5. Quanti sono?\t4\n', 'utf-8')
    counter = f'--tokenizer={weights}'
    with serve_stub(answer=reply) as stub:
        model = ('--llm=m', f'--base-url={stub.address}')
        # More than 64 items, so that worker processes need the language, too.
        sizes = ('--min-document-tokens=10', '--min-segment-tokens=10', '--workers=2')
        out = run_successfully(
            *('documents', one, f'--input={wiki}', counter, *sizes),
            f'--output={tmp_path}/documents',
        )
        assert out.startswith('documents: 70 items, 70 kept')
        out = run_successfully(
            *('dialogues', rows, f'--input={tmp_path}/documents', counter, *model),
            *('--limit=1', f'--output={tmp_path}/dialogues'),
        )
        assert out.startswith('dialogues: 1 items, 1 kept')
        out = run_successfully(
            *('translate', one, f'--input={english}', *model, f'--output={tmp_path}/math')
        )
        assert out.startswith('translate: 1 items, 1 kept')
        out = run_successfully(
            'mgsm', one, f'--input={problems}', *model, f'--output={tmp_path}/mgsm'
        )
        assert out.startswith('1 of 1 answers correct')
    made = f'--input={tmp_path}/dialogues,{tmp_path}/math'
    out = run_successfully('prune', rows, made, f'--output={tmp_path}/pruned')
    assert '| it | math | 1 | 0 | 0 | 1 |' in out
    out = run_successfully(
        'export', rows, f'--input={tmp_path}/pruned', f'--output={tmp_path}/release'
    )
    assert out.splitlines() == ['it_chat_specific.jsonl: 1 rows', 'it_math.jsonl: 1 rows']
    out = run_successfully(
        'report', rows, f'--input={tmp_path}/pruned', counter, f'--output={tmp_path}/report'
    )
    assert '| it | 1 | 0 | 1 | 0 | 2 |' in out
    first = json.loads((tmp_path / 'release' / 'it_chat_specific.jsonl').open().readline())
    assert first['data'][0].startswith('Leggi il documento seguente')
    out = run_successfully('explain', 'it-m1', rows, f'--stages={tmp_path}')
    assert 'released as it_math_0' in out
    # The language is unknown without its file.
    done = run('export', f'--input={tmp_path}/pruned', f'--output={tmp_path}/other')
    assert done.returncode == 2
    assert "Unknown language 'it'" in done.stderr and '--language-files=it.toml' in done.stderr
    done = run('report', *(rows.replace('it.toml', 'none.toml'), made, counter), '--output=x')
    assert done.stderr == f'{tmp_path}/none.toml cannot be read: No such file or directory.\n'


@pytest.mark.slow
def test_another_file_does_not_resume(tmp_path, italian, weights):
    """The manifest records the content of a user's language file."""
    wiki = write_rows(
        tmp_path / 'wiki.jsonl', [{'id': 1, 'title': 'Arsenale', 'text': '\n'.join(ANSWERS)}]
    )
    command = (
        *('documents', f'--language={italian}', f'--input={wiki}', f'--tokenizer={weights}'),
        *('--min-document-tokens=10', '--min-segment-tokens=10', f'--output={tmp_path}/out'),
    )
    run_successfully(*command)
    before = read_rows(tmp_path / 'out')
    run_successfully(*command)
    italian.write_text(italian.read_text('utf-8').replace('italiano', 'Italiano'), 'utf-8')
    done = run(*command)
    assert done.returncode == 2 and 'was made with language_file = ' in done.stderr
    assert read_rows(tmp_path / 'out') == before


def test_a_language_replaces_the_built_in_one(monkeypatch, tmp_path):
    path = tmp_path / 'fr.toml'
    path.write_text(own_french(), 'utf-8')
    monkeypatch.setitem(languages.LANGUAGES, 'fr', languages.LANGUAGES['fr'])
    before = translations.digest('fr'), prompts.digests()['fr']
    assert languages.add_file(path).code == 'fr'
    assert prompts.load('fr').question_label == 'Domanda: '
    assert quantities.number_differences('3 million', '3 milioni') == ([], [])
    assert before[0] != translations.digest('fr') and before[1] != prompts.digests()['fr']
    with pytest.raises(UserError, match="Unknown prompt set of Italian 'paper': known are strict"):
        prompts.load('fr', 'paper')


@pytest.mark.slow
def test_a_new_language_does_not_prevent_others_from_resuming(tmp_path, italian, weights):
    segments = [
        {**document('fr', number, lines=4), 'id': f'fr-{number}', 'language': 'fr'}
        for number in range(2)
    ]
    source = write_rows(tmp_path / 'segments.jsonl', segments)
    with serve_stub() as stub:
        command = (
            *('dialogues', f'--input={source}', f'--tokenizer={weights}', '--llm=m'),
            *(f'--base-url={stub.address}', f'--output={tmp_path}/out', '--context-tokens=9000'),
        )
        run_successfully(*command, '--limit=1')
        out = run_successfully(*command, '--limit=2', f'--language-files={italian}')
    assert out.startswith('dialogues: 2 items, 2 kept')
    assert set(stub.attempt_counts.values()) == {1}
    # Its own prompts are recorded: a French of the user does not resume.
    french = tmp_path / 'fr.toml'
    french.write_text(own_french(), 'utf-8')
    done = run(*command, '--limit=2', f'--language-files={french}')
    assert done.returncode == 2 and 'was made with prompts.fr = ' in done.stderr
