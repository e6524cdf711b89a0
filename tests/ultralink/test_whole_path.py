"""The script from a Wikipedia dump to a release and four evaluations, on small made-up inputs."""

import json
import os
import re
import subprocess
import sys

import pytest

from malora_jax.ultralink.criteria import CRITERIA
from tests.helpers.openai_stub import document, serve_stub, texts
from tests.helpers.paths import ROOT
from tests.ultralink import test_humaneval, test_omgeval, translated_texts
from tests.ultralink.helpers import read_rows, run_successfully, write_rows
from tests.ultralink.test_question_files import write_outputs

pytest.importorskip('lm_eval', reason="needs the extra 'harness'")
pytestmark = [
    pytest.mark.slow(start_first=True),
    pytest.mark.usefixtures('commands_compile_quickly'),
]

LANGUAGES = ('en', 'fr')
ARTICLES = 8
QUESTIONS = 3
# A task of the harness that needs no network.
TASK = """\
task: local_{language}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/tasks/rows.jsonl}}
  cache_dir: {folder}/tasks/cache
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: options
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
ENGLISH_TEMPLATE = test_omgeval.TEMPLATE.replace(
    'Vous comparez des réponses.', 'You compare two answers to the same question.'
).replace(
    'Donnez la liste des modèles avec leur rang, sans aucun autre texte.',
    'Reply with the list of the models and their ranks, and with no other text at all.',
)
SETTINGS = """\
output={home}/out
wiki={home}/wiki
english_chat='--input={home}/sharegpt.json'
english_math='--input={home}/metamath.jsonl --license=MIT --url=https://example.org/math'
english_code='--input={home}/magicoder.jsonl --license=MIT'
teacher='--llm=teacher --base-url={address}'
judge='--llm=judge --base-url={address}'
omgeval={home}/OMGEval
mgsm={home}/mgsm
humaneval={home}/originals.jsonl
humaneval_translation={home}/translated.jsonl
humaneval_language=es

languages='en fr'
tokenizer={weights}
report_tokenizer={weights}
math_sample=3
config=configs/ultralink_lm_small.py:malora
harness_tasks=local_LANGUAGE
python={python}
# The tiny tokenizer has a token for almost every byte, and the tiny model has a context of 2,048.
documents_flags='--segment-tokens=1100 --min-segment-tokens=300'
dialogues_flags='--context-tokens=9000'
train_flags='--config.model.name=tiny --config.model.weights={weights} --config.training.steps=4
  --config.training.evaluate_every=2 --config.training.checkpoint_every=2
  --config.data.held_out=2 --config.data.validation=1 --config.data.batch_size=2'
answer_flags='--limit=3 --max-tokens=8'
harness_flags='--include_path {home}/tasks'
"""


def reply(body) -> str:
    """Score a conversation, translate a recorded text, or compare two answers."""
    text = body['messages'][-1]['content']
    if body['model'] == 'judge':
        return test_omgeval.FIRST if body['max_tokens'] == 100 else '[[A]]'
    if text.startswith('<user>'):
        return json.dumps(dict.fromkeys(CRITERIA, 0) | {'names': int('Ann' in text)})
    (found,) = [each.translations for each in translated_texts.ALL.values() if each.english == text]
    return found['fr']


def write_inputs(home) -> None:
    """Write a small file in place of each dump, dataset and benchmark."""
    maths, latex, code = (translated_texts.ALL[name] for name in ('maths', 'latex', 'code'))
    for language in LANGUAGES:
        (home / 'wiki' / language).mkdir(parents=True)
        url = f'https://{language}.wikipedia.org/wiki?curid='
        articles = [{**document(language, n), 'url': f'{url}{n}'} for n in range(ARTICLES)]
        write_rows(home / 'wiki' / language / 'wiki_00.jsonl', articles)
    chats = [[maths, latex], [latex, latex], [code, latex]]
    chats = [[each.english for each in chat] for chat in chats]
    chats.append(['Ann works until ten. How can she sleep well?', 'She could read for an hour.'])
    turns = [
        [
            {'from': speaker, 'value': text}
            for speaker, text in zip(('human', 'gpt'), chat, strict=True)
        ]
        for chat in chats
    ]
    write_rows(
        home / 'sharegpt.json',
        [{'id': f'chat-{n}', 'conversations': turn} for n, turn in enumerate(turns)],
    )
    write_rows(
        home / 'metamath.jsonl',
        [{'query': q.english, 'response': maths.english} for q in (maths, latex, maths, latex)],
    )
    write_rows(home / 'magicoder.jsonl', [{'problem': code.english, 'solution': code.english}])
    (home / 'mgsm').mkdir()
    problems = {'en': maths.english, 'fr': maths.translations['fr']}
    for language, problem in problems.items():
        line = f'{problem.replace(chr(10), " ")}\t1102\n'
        (home / 'mgsm' / f'mgsm_{language}.tsv').write_text(line * QUESTIONS, 'utf-8')
    for folder, language in (('english', 'en'), ('french', 'fr')):
        outputs = home / 'OMGEval' / 'model_outputs' / folder
        outputs.mkdir(parents=True)
        asked, answered = (texts()[language][name][:4] for name in ('questions', 'answers'))
        write_outputs(outputs / 'gpt4.json', zip(asked, answered, strict=True))
    templates = home / 'OMGEval' / 'evaluator_prompts' / 'gpt4_template'
    templates.mkdir(parents=True)
    (templates / 'en.txt').write_text(ENGLISH_TEMPLATE, 'utf-8')
    (templates / 'fr.txt').write_text(test_omgeval.TEMPLATE, 'utf-8')
    problems = [test_humaneval.DOUBLE, test_humaneval.ODD]
    write_rows(home / 'originals.jsonl', problems)
    # The first row has a fault, which is reported and does not end the path.
    faulty = test_humaneval.translated(problems[0], ('[2, 4]', '[2; 4]'))
    write_rows(home / 'translated.jsonl', [faulty, test_humaneval.translated(problems[1])])
    (home / 'tasks').mkdir()
    rows = [{'question': f'{n} + 1 =', 'options': [' 1', f' {n + 1}'], 'label': 1} for n in (1, 2)]
    write_rows(home / 'tasks' / 'rows.jsonl', rows)
    for language in LANGUAGES:
        task = TASK.format(language=language, folder=home)
        (home / 'tasks' / f'{language}.yaml').write_text(task)


def run_script(settings):
    return subprocess.run(
        ['bash', 'experiments/ultralink/whole_path.sh', str(settings)],
        cwd=ROOT,
        env={**os.environ, 'OPENAI_API_KEY': 'sk-secret', 'HF_HUB_OFFLINE': '1'},
        capture_output=True,
        text=True,
        timeout=900,
    )


def all_bytes(home):
    """Return the content of every file of the output, except for locks."""
    paths = [path for path in home.rglob('*') if path.is_file() and path.name != '.lock']
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def whole(tmp_path_factory, weights):
    """Directory of all files, and what the script has printed at the first and second time."""
    home = tmp_path_factory.mktemp('whole_path')
    write_inputs(home)
    settings = home / 'settings.sh'
    with serve_stub(answer=reply) as stub:
        settings.write_text(
            SETTINGS.format(home=home, address=stub.address, weights=weights, python=sys.executable)
        )
        first = run_script(settings)
        assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
        requests, written = stub.attempt_counts.total(), all_bytes(home / 'out')
        again = run_script(settings)
        assert again.returncode == 0, again.stderr
        repeated = stub.attempt_counts.total() - requests
    assert requests and repeated == 0
    assert all_bytes(home / 'out') == written
    return home, first.stdout, again.stdout


def manifest(folder):
    """Return the manifest of a finished stage, whose counts agree with each other and its files."""
    found = json.loads((folder / 'manifest.json').read_text())
    total = found['total']
    assert found['complete'] and total['items'] == total['kept'] + sum(total['dropped'].values())
    assert total['rows'] == len(read_rows(folder))
    return total


def lines(path):
    return [json.loads(line) for line in path.open(encoding='utf-8')]


def released(out):
    """Return the rows of each released file by name."""
    return {path.name: lines(path) for path in sorted((out / 'release').glob('*.jsonl'))}


def test_the_counts_of_the_stages_follow_from_each_other(whole):
    data = whole[0] / 'out' / 'data'
    rows = {
        f'{path.parent.parent.name}/{path.parent.name}': manifest(path.parent)['rows']
        for path in data.glob('*/*/manifest.json')
    }
    items = {name: manifest(data / name)['items'] for name in rows}
    assert len(rows) == 11
    for language in LANGUAGES:
        assert items[f'{language}/documents'] == ARTICLES
        assert items[f'{language}/dialogues'] == rows[f'{language}/documents'] > ARTICLES
    assert (items['en/agnostic'], rows['en/agnostic']) == (rows['en/chat'], 3) == (4, 3)
    assert items['fr/chat'] == rows['en/agnostic']
    assert (rows['en/math'], items['fr/math'], items['fr/code']) == (4, 3, rows['en/code'])
    # The selected English chats are no rows of their own.
    made = [rows[n] for n in rows if n not in ('en/agnostic', 'en/documents', 'fr/documents')]
    assert manifest(data / 'pruned')['items'] == sum(made)


def test_the_release_has_all_subsets_and_english(whole):
    out = whole[0] / 'out'
    rows = released(out)
    subsets = ('chat_specific', 'chat_agnostic', 'math', 'code')
    assert set(rows) == {f'{code}_{subset}.jsonl' for code in LANGUAGES for subset in subsets}
    counts = {name: len(each) for name, each in rows.items()}
    pruned = manifest(out / 'data' / 'pruned')
    assert sum(counts.values()) == pruned['rows']
    card = (out / 'release' / 'README.md').read_text()
    report = (out / 'report' / 'report.md').read_text()
    for name, count in counts.items():
        language, _, subset = name.removesuffix('.jsonl').partition('_')
        assert pruned['counts'][f'{language} {subset}: kept'] == count
        assert re.search(rf'^\| `{name}` \| {count} \|', card, re.MULTILINE)
        assert re.search(rf'^\| {language} \| {subset} \| {count} \|', report, re.MULTILINE)
        assert f'{name}: {count} rows\n' in whole[1]
        sources = out / 'release' / 'attribution' / name.replace('.jsonl', '.sources.jsonl')
        assert [row['id'] for row in rows[name]] == [source['id'] for source in lines(sources)]
    for language in LANGUAGES:
        of_language = [row for n, each in rows.items() if n.startswith(language) for row in each]
        training = lines(out / 'release' / 'training' / f'{language}.jsonl')
        assert sorted(map(str, training)) == sorted(map(str, of_language))


def test_ten_rows_have_their_articles(whole):
    home = whole[0]
    for language in LANGUAGES:
        articles = {row['id']: row for row in lines(home / 'wiki' / language / 'wiki_00.jsonl')}
        name = f'{language}_chat_specific'
        folder = home / 'out' / 'release' / 'attribution'
        sources = lines(folder / f'{name}.sources.jsonl')[:5]
        for row, each in zip(released(home / 'out')[f'{name}.jsonl'][:5], sources, strict=True):
            article = articles[each['source']['id']]
            assert each['source'] == {
                'id': article['id'],
                'title': article['title'],
                'url': article['url'],
                'license': 'CC BY-SA 4.0',
            }
            text = row['data'][0].partition('<document>\n')[2].partition('\n</document>')[0]
            assert text and text in article['text']
            identifier = each['conversation']
            assert identifier in {
                r['id'] for r in read_rows(home / 'out/data' / language / 'documents')
            }
    told = run_successfully('explain', f'{name}_0', f'--stages={home}/out')
    assert 'released as fr_chat_specific_0' in told and 'documents (' in told


def test_the_evaluations_have_scores(whole):
    results = whole[0] / 'out' / 'results'
    scores = (results / 'scores.txt').read_text()
    assert scores in whole[1] and scores in whole[2]
    humaneval = json.loads((results / 'humaneval.json').read_text())['tasks']['humaneval']
    assert humaneval['examples'] == 2 and 0 <= humaneval['score'] <= 1
    check = (results / 'humaneval_check.txt').read_text()
    assert '1 of 2 rows have no fault.' in check and 'examples' in check
    passed = f'pass@1 {humaneval["score"]} for 2 problems; 1 of 2 rows have no fault.'
    assert f'HumanEval, es: {passed}\n' in scores
    for language in LANGUAGES:
        folder = results / language
        assert manifest(folder / 'mgsm')['items'] == QUESTIONS
        assert re.search(rf'^mgsm, {language}: \d of 3 answers correct', scores, re.MULTILINE)
        assert manifest(folder / 'answers')['rows'] == QUESTIONS
        # The judge prefers the first answer: a tie in both orders, a victory at random in one.
        assert [row['score'] for row in read_rows(folder / 'both_orders')] == 3 * [0.5]
        assert {row['score'] for row in read_rows(folder / 'omgeval')} <= {0.0, 1.0}
        assert f'both_orders, {language}: Win rate 50.0%' in scores
        assert re.search(rf'^omgeval, {language}: Win rate \d+\.\d+%', scores, re.MULTILINE)
        (path,) = (folder / 'harness').rglob('results_*.json')
        accuracy = json.loads(path.read_text())['results'][f'local_{language}']['acc,none']
        assert accuracy in (0.0, 0.5, 1.0) and f'|local_{language}|' in scores


def test_each_step_is_printed_once(whole):
    steps = re.findall(r'^== \d\d:\d\d:\d\d, step (\d+) of (\d+): ', whole[1], re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {str(len(steps))}


def test_a_failure_names_the_step(tmp_path):
    settings = tmp_path / 'settings.sh'
    text = SETTINGS.format(
        home=tmp_path, address='http://127.0.0.1:1', weights='w', python=sys.executable
    )
    settings.write_text(text)
    done = run_script(settings)
    assert done.returncode == 2
    assert done.stderr.startswith(f'There is no {tmp_path}/originals.jsonl.\nStopped at step 1 of ')
    write_inputs(tmp_path)
    (tmp_path / 'sharegpt.json').unlink()
    done = run_script(settings)
    assert done.returncode == 2
    assert re.search(r'Stopped at step 3 of \d+, import English chats \(exit', done.stderr)
    settings.write_text(text.replace('mgsm=', 'mgms='))
    done = run_script(settings)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert 'does not set mgsm; see experiments/ultralink/whole_path.sh' in done.stderr
    done = run_script(tmp_path / 'none.sh')
    assert (
        done.returncode == 2
        and 'bash experiments/ultralink/whole_path.sh SETTINGS.sh' in done.stderr
    )
