"""All of UltraLink on this machine: from documents in five languages to an adapter.

The endpoint occasionally refuses, fails, hangs, cuts its answers short or uses the wrong language;
its answers are recorded texts in each language.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from malora_jax.files import read_json_lines
from malora_jax.ultralink import translations
from tests.helpers.openai_stub import FailurePlan, document, serve_stub, texts
from tests.helpers.paths import ROOT
from tests.ultralink import translated_texts
from tests.ultralink.helpers import read_rows, run_successfully, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('commands_compile_quickly')]

DOCUMENTS = 8
RATES = {
    **dict.fromkeys(('rate_limit', 'error', 'timeout'), 0.03),
    **dict.fromkeys(('truncated', 'wrong_language', 'cites', 'malformed'), 0.04),
}
# The tiny tokenizer has a token for almost every byte, and the tiny model has a context of 2,048.
SEGMENTS = ('--segment-tokens=1100', '--min-segment-tokens=300')
SMALL = (
    *('--config.model.name=tiny', '--config.data.sequence_length=512', '--config.data.held_out=2'),
    *('--config.data.validation=1', '--config.data.batch_size=2', '--config.training.steps=24'),
    *('--config.training.evaluate_every=12', '--config.training.checkpoint_every=12'),
    *('--config.optimizer.learning_rate=0.01', '--config.evaluation.max_new_tokens=900'),
)


def translation(body) -> str:
    """Return the recorded translation of a text into the requested language."""
    system, text = body['messages'][0]['content'], body['messages'][-1]['content']
    (language,) = [
        code
        for code in translations.target_languages()
        if system == translations.load(code, 'math').system
    ]
    (found,) = [each.translations for each in translated_texts.ALL.values() if each.english == text]
    return found[language]


@pytest.fixture(scope='module')
def made(tmp_path_factory, weights):
    """Directory of all stages, and their output."""
    home = tmp_path_factory.mktemp('whole')
    counter = f'--tokenizer={weights}'
    maths = [
        {
            'id': f'en-math-{number}',
            'language': 'en',
            'subset': 'math',
            'data': [each.english, each.english],
        }
        for number, each in enumerate((translated_texts.MATHS, translated_texts.LATEX))
    ]
    english = write_rows(home / 'maths.jsonl', maths)
    told = {}
    with serve_stub(FailurePlan(RATES, hang_s=0.6), translation) as stub:
        llm = ('--llm=m', f'--base-url={stub.address}', '--timeout=0.5')
        for code in texts():
            wiki = write_rows(home / f'{code}.jsonl', [document(code, i) for i in range(DOCUMENTS)])
            documents, dialogues = f'{home}/{code}/documents', f'{home}/{code}/dialogues'
            told[code, 'documents'] = run_successfully(
                'documents',
                f'--language={code}',
                f'--input={wiki}',
                counter,
                f'--output={documents}',
                *SEGMENTS,
            )
            talk = ('--context-tokens=9000', f'--input={documents}', f'--output={dialogues}')
            told[code, 'dialogues'] = run_successfully('dialogues', *talk, counter, *llm)
        for code in translations.target_languages():
            out = f'--output={home}/{code}/translated'
            told[code, 'translate'] = run_successfully(
                'translate', f'--language={code}', f'--input={english}', out, *llm
            )
        failed = stub.failure_counts
    rows = [f'{home}/{code}/dialogues' for code in texts()]
    rows += [f'{home}/{code}/translated' for code in translations.target_languages()]
    run_successfully('prune', f'--input={",".join(rows)}', f'--output={home}/pruned')
    told['export'] = run_successfully(
        'export', f'--input={home}/pruned', f'--output={home}/release'
    )
    stages = f'--stages={",".join(rows)},{home}/pruned'
    report = ('report', f'--input={home}/pruned', stages, counter, f'--output={home}/report')
    told['report'] = run_successfully(*report)
    return home, told, failed


def test_the_endpoint_failed_in_every_way(made):
    _, _, failed = made
    assert all(failed[kind] for kind in RATES), failed


def test_nothing_is_lost_and_counts_add_up(made):
    home, told, _ = made
    for code in texts():
        assert told[code, 'documents'].startswith(f'documents: {DOCUMENTS} items, {DOCUMENTS} kept')
        segments = read_rows(home / code / 'documents')
        dialogues = read_rows(home / code / 'dialogues')
        items, kept = map(int, re.findall(r'(\d+) (?:items|kept)', told[code, 'dialogues']))
        assert (items, kept) == (len(segments), len(dialogues))
        # A document's segments are its lines, in order.
        for number in range(DOCUMENTS):
            lines = [s['text'] for s in segments if s['id'].startswith(f'{code}-{number}-')]
            assert '\n'.join(lines) == document(code, number)['text'][: len('\n'.join(lines))]
        assert {row['id'] for row in dialogues} <= {row['id'] for row in segments}
        assert kept > items // 2
    total = sum(int(n) for n in re.findall(r': (\d+) rows', told['export']))
    assert total == len(read_rows(home / 'pruned'))


def test_each_language_is_learnt(made, weights):
    home, _, _ = made
    files = tuple(f'{code}={home}/release/training/{code}.jsonl' for code in texts())
    command = [
        *(sys.executable, '-m', 'experiments.train'),
        *('--config=configs/ultralink_lm_small.py:malora', f'--workdir={home}/run', *SMALL),
        *(f'--config.model.weights={weights}', f'--config.data.files={files}'),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    # The segments are longer than the context.
    assert all(f'Warning: {code}: ' in done.stdout for code in texts())
    results = json.loads((home / 'run' / 'results.json').read_text())
    assert list(results['tasks']) == [*texts()]
    for task in results['tasks'].values():
        assert task['loss_after'] < task['loss_before']
    last = read_json_lines(home / 'run' / 'metrics.jsonl')[-1]
    assert last['step'] == 24
