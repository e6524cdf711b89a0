"""OMGEval's protocol: templates, order, verdicts and win rate, compared with AlpacaEval's rules."""

import asyncio
import random
import statistics

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.evaluation import judge, omgeval
from malora_jax.ultralink.evaluation.judge import JudgeConfig
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.manifest import read_manifest
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.openai_stub import serve_stub
from tests.ultralink.helpers import FakeModel, read_rows, run_successfully, write_rows
from tests.ultralink.test_question_files import write_outputs

# In the format of OMGEval's templates, but not their text.
TEMPLATE = """\
<|im_start|>system
Vous comparez des réponses.
<|im_end|>
<|im_start|>user
Voici la question : {"instruction": \"\"\"{instruction}\"\"\"}
Voici les deux réponses à comparer : [\"\"\"{output_1}\"\"\", \"\"\"{output_2}\"\"\"]
Donnez la liste des modèles avec leur rang, sans aucun autre texte.
<|im_end|>"""
FIRST = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
SECOND = "[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]"


def write_template(tmp_path, text=TEMPLATE):
    path = tmp_path / 'fr.txt'
    path.write_text(text, 'utf-8')
    return path


def run(tmp_path, say, answers, baselines, text=TEMPLATE, **options):
    questions = [f'Où se trouve la ville numéro {number} ?' for number in range(len(answers))]
    inputs = [write_outputs(tmp_path / 'ours.json', zip(questions, answers, strict=True))]
    baseline = write_outputs(tmp_path / 'theirs.json', zip(questions, baselines, strict=True))
    template = write_template(tmp_path, text)
    config = JudgeConfig('fr', baseline, protocol='omgeval', template=template, **options)
    model = FakeModel(say)
    given = StageRun(config, inputs, tmp_path / 'out', model=model)
    manifest = asyncio.run(STAGES['judge'].run(given))
    return read_rows(tmp_path / 'out'), manifest, model.requests, judge.summary(given, manifest)


def answer_of_first(request):
    return request.messages[-1].content.partition('[""')[2].partition('""", "')[0].strip('"')


def test_a_pair_is_judged_once_in_the_order_of_alpaca_eval(tmp_path):
    ours, theirs = [f'ours {n}' for n in range(40)], [f'theirs {n}' for n in range(40)]
    found, manifest, requests, _ = run(tmp_path, lambda request: FIRST, ours, theirs)
    assert len(requests) == 40
    # AlpacaEval's rule, written independently: the baseline is output_1 unless it is switched.
    for number, (row, request) in enumerate(zip(found, requests, strict=True)):
        seed = 'is_switched_outputs' + f'Où se trouve la ville numéro {number} ?' + '0'
        switched = random.Random(seed).choices([False, True], k=1)[0]
        winner = 'answer' if switched else 'baseline'
        assert row == {
            'id': f'ours-{number + 1}',
            'verdicts': [winner],
            'score': float(switched),
            'first': winner,
        }
        assert answer_of_first(request) == (ours if switched else theirs)[number]
    assert 10 < sum(row['first'] == 'answer' for row in found) < 30
    assert {(r.sampling.max_tokens, r.sampling.temperature) for r in requests} == {(100, 0.0)}
    assert manifest.settings['protocol'] == 'omgeval' and manifest.settings['attempts'] == 1


def test_one_verdict_has_no_standard_error(tmp_path):
    _, _, _, text = run(tmp_path, lambda request: FIRST, ['ours'], ['theirs'])
    assert 'standard error unknown for one verdict: ' in text


def test_the_win_rate_and_its_standard_error(tmp_path):
    def say(request):
        """Prefer our answer, except where the answer says otherwise."""
        text = request.messages[-1].content
        ours_first = answer_of_first(request).startswith('ours')
        if 'unclear' in text:
            return 'Model 1 is better.'
        return FIRST if ours_first != ('worse' in text) else SECOND

    ours = ['ours', 'ours', 'ours, worse', 'ours, unclear', 'equal', 'ours']
    found, manifest, requests, text = run(tmp_path, say, ours, [*5 * ['equal'], 'theirs'])
    scores = [1, 1, 0, 0.5, 1]
    assert [row['score'] for row in found] == scores and len(requests) == 5
    assert manifest.total.dropped == {'no verdict': 1}
    assert manifest.total.counts == {'equal answers, not judged': 1}
    error = statistics.stdev(scores) / len(scores) ** 0.5
    assert f'Win rate 70.00%, standard error {error:.2%}: 3 wins, 1 ties, 1 losses' in text


@pytest.mark.parametrize(
    'reply, points',
    [
        (FIRST, 1),
        (SECOND, -1),
        (f'\n{FIRST}\n', 1),
        ('({"model": "model_1", "rank": 2},)', -1),
        ("[{'model': 'model_1', 'rank': 3}]", None),
        ("[{'model': 'model_1', 'rank': []}]", None),
        ("[{'model': 'model_2', 'rank': 1}]", None),
        ("[{'rank': 1}]", None),
        ("{'model': 'model_1', 'rank': 1}", None),
        (f'```python\n{FIRST}\n```', None),
        ('[[A]]', None),
        ('model_1', None),
        ('1', None),
        ('', None),
        ('\0', None),
        (9999 * '[', None),
    ],
)
def test_the_reply_must_be_a_python_literal(reply, points):
    assert omgeval.parse_ranking(Reply(reply, 'stop', 1)) == points


def test_texts_that_look_like_placeholders_are_not_replaced(tmp_path):
    template = omgeval.read_template(write_template(tmp_path))
    filled = template.fill('{output_1}', r'\1 {instruction}', '<|im_end|>')
    assert filled[0] == ('system', 'Vous comparez des réponses.')
    assert '"""{output_1}"""' in filled[1].content
    assert r'"""\1 {instruction}""", """<|im_end|>"""' in filled[1].content


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('{output_2}', '', r'has {output_2} 0 times; a template has each of {instruction}, {out'),
        ('{output_1}', '{output_1} {output_1}', 'has {output_1} 2 times'),
        ('<|im_start|>', '', 'is not a template of OMGEval'),
        ('<|im_start|>user', '<|im_start|>human', 'is not a template of OMGEval'),
    ],
)
def test_a_template_that_cannot_be_used(tmp_path, old, new, message):
    path = write_template(tmp_path, TEMPLATE.replace(old, new))
    with pytest.raises(UserError, match=message.replace('{', r'\{')):
        omgeval.read_template(path)


def test_a_template_in_another_language(tmp_path):
    text = TEMPLATE
    for french, spanish in (
        ('Vous comparez des réponses', 'Usted compara las respuestas'),
        ('Voici la question', 'Aquí está la pregunta'),
        ('Voici les deux réponses à comparer', 'Aquí están las dos respuestas para comparar'),
        ('Donnez la liste des modèles avec leur rang', 'Escriba la lista de los modelos'),
        ('sans aucun autre texte', 'con su rango, sin ningún otro texto'),
    ):
        text = text.replace(french, spanish)
    with pytest.raises(UserError, match=r'fr.txt: the texts of the template are not in French'):
        run(tmp_path, lambda request: FIRST, ['a'], ['b'], text)


def test_the_template_belongs_to_the_protocol(tmp_path):
    with pytest.raises(UserError, match='--template is only used with --protocol=omgeval'):
        JudgeConfig('fr', tmp_path, template=tmp_path)
    config = JudgeConfig('fr', write_rows(tmp_path / 'b.jsonl', []), protocol='omgeval')
    given = StageRun(config, [], tmp_path / 'out', model=FakeModel(lambda request: FIRST))
    with pytest.raises(UserError, match='--protocol=omgeval needs --template=FILE, such as'):
        STAGES['judge'].prepare(given)


def test_an_output_from_before_the_protocols_can_be_extended(tmp_path):
    row = {'id': '0', 'question': 'q', 'answer': 'a'}
    path = write_rows(tmp_path / 'rows.jsonl', [row])
    given = StageRun(
        JudgeConfig('fr', path), [path], tmp_path / 'out', model=FakeModel(lambda _: '[[C]]')
    )
    asyncio.run(STAGES['judge'].run(given))
    file = tmp_path / 'out' / 'manifest.json'
    file.write_text(file.read_text().replace('"protocol": "both_orders",', ''))
    assert '"protocol"' not in file.read_text()
    assert read_manifest(tmp_path / 'out').settings['protocol'] == 'both_orders'
    asyncio.run(STAGES['judge'].run(given))


def test_the_commands_from_questions_to_a_win_rate(tmp_path):
    """The output of `answers` is judged against a file of OMGEval, and nothing is paid twice."""
    questions = [f'Où se trouve la ville numéro {number} ?' for number in range(30)]
    (tmp_path / 'questions.txt').write_text('\n'.join(questions), 'utf-8')
    theirs = [(question, f'theirs {number}') for number, question in enumerate(questions)]
    baseline = write_outputs(tmp_path / 'theirs.json', reversed(theirs))

    def answer(body):
        text = body['messages'][-1]['content']
        if 'theirs' not in text:
            return 'ours'
        return FIRST if text.index('ours') < text.index('theirs') else SECOND

    with serve_stub(answer=answer) as stub:
        llm = ('--llm=m', f'--base-url={stub.address}')
        ask = ('answers', f'--input={tmp_path}/questions.txt', f'--output={tmp_path}/ours', *llm)
        estimate = run_successfully(*ask, '--sample=20', '--estimate')
        assert '20 requests' in estimate and not stub.answer_counts
        assert run_successfully(*ask, '--sample=20').startswith(
            'answers: 20 items, 20 kept, 20 rows'
        )
        run_successfully(*ask, '--sample=25')
        assert sum(stub.answer_counts.values()) == 25
        compare = (
            *('judge', '--language=fr', f'--input={tmp_path}/ours', f'--baseline={baseline}'),
            *('--protocol=omgeval', f'--template={write_template(tmp_path)}', *llm),
            f'--output={tmp_path}/judged',
        )
        text = run_successfully(*compare)
        assert 'Win rate 100.00%, standard error 0.00%: 25 wins, 0 ties, 0 losses' in text
        assert run_successfully(*compare) == text
        assert sum(stub.answer_counts.values()) == 50
