"""The commands of UltraLink, as a user runs them."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from malora_jax.ultralink.languages import LANGUAGES
from tests.helpers.openai_stub import FailurePlan, document, serve_stub
from tests.helpers.paths import ROOT
from tests.ultralink.billed_stages import translated, translation_row
from tests.ultralink.helpers import read_rows, run, write_rows

pytestmark = pytest.mark.slow


def test_commands_start_without_jax():
    """It would take most of the time of commands that only read files."""
    code = (
        'import sys, experiments.ultralink.__main__\n'
        'print({"jax", "grain", "openai", "malora_jax.data"} & {*sys.modules})'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("{'malora_jax.data'}\n", '')


def test_from_documents_to_dialogues(tmp_path, weights):
    # The tiny tokenizer has a token for almost every byte.
    source = write_rows(tmp_path / 'wiki.jsonl', [document('fr', i) for i in range(4)])
    made = run(
        'documents',
        '--language=fr',
        f'--input={source}',
        f'--tokenizer={weights}',
        f'--output={tmp_path}/documents',
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith('documents: 4 items, 4 kept, ')
    segments = len(read_rows(tmp_path / 'documents'))
    assert segments > 4
    talk = [
        'dialogues',
        f'--input={tmp_path}/documents',
        f'--output={tmp_path}/dialogues',
        f'--tokenizer={weights}',
        '--llm=m',
    ]
    with serve_stub() as stub:
        asked = run(*talk, f'--base-url={stub.address}', '--context-tokens=9000')
        assert asked.returncode == 0, asked.stderr
        requests = sum(stub.attempt_counts.values())
        again = run(*talk, f'--base-url={stub.address}', '--context-tokens=9000')
    assert asked.stdout.startswith(f'dialogues: {segments} items, {segments} kept, {segments} rows')
    assert again.stdout == asked.stdout and sum(stub.attempt_counts.values()) == requests
    [first, *_] = read_rows(tmp_path / 'dialogues')
    assert first['id'] == 'fr-0-0' and len(first['data']) >= 4
    # The API key is in no file.
    for path in tmp_path.rglob('*'):
        assert not path.is_file() or b'sk-secret' not in path.read_bytes()
    # Another --context-tokens is a different setting: one line of error.
    other = run(*talk, '--context-tokens=100')
    assert other.returncode == 2
    assert other.stderr == (
        f'{tmp_path}/dialogues was made with context_tokens = 9000, not 100: choose another '
        '--output.\n'
    )


def test_estimate_preview_and_a_growing_sample(tmp_path):
    source = write_rows(tmp_path / 'math.jsonl', map(translation_row, range(30)))
    prices = tmp_path / 'prices.toml'
    prices.write_text('[m]\nprompt = 1\ncompletion = 2\n')
    with serve_stub(answer=translated) as stub:
        command = [
            'translate',
            '--language=fr',
            f'--input={source}',
            f'--output={tmp_path}/fr/math',
            f'--prices={prices}',
            '--llm=m',
            f'--base-url={stub.address}',
        ]
        estimated = run(*command, '--sample=10', '--estimate')
        without_key = run(*command, '--sample=10', '--estimate', OPENAI_API_KEY='')
        assert without_key.stdout == estimated.stdout
        assert not stub.requests and not (tmp_path / 'fr').exists()
        shown = run(*command, '--sample=10', '--preview=1')
        paid = sum(stub.answer_counts.values())
        assert [path.name for path in (tmp_path / 'fr').iterdir()] == ['answers.sqlite']
        made, grown = (run(*command, f'--sample={size}') for size in (10, 12))
        assert max(stub.answer_counts.values()) == 1
    for done in (estimated, shown, made, grown):
        assert done.returncode == 0, done.stderr
    assert estimated.stdout.startswith('translate: estimate for 10 items: 20 requests, ')
    assert f'1 item, {paid} requests: 0 replies were in the cache, and {paid} new' in shown.stdout
    first = made.stderr.splitlines()[0]
    assert first.startswith('translate: estimate for 9 items (and 1 from the cache): ')
    assert (
        first.endswith('; measured on the replies to one item in the cache.') and ', $0.0' in first
    )
    assert made.stdout.startswith('translate: 10 items, 10 kept, 10 rows')
    assert 'estimate for 2 items (and 10 from the cache)' in grown.stderr.splitlines()[0]
    assert grown.stdout.startswith('translate: 12 items, 12 kept, 12 rows')


def test_costs_of_a_run_that_is_interrupted_and_of_a_repeated_run(tmp_path):
    source = write_rows(tmp_path / 'math.jsonl', map(translation_row, range(20)))
    with serve_stub(FailurePlan(latency_s=0.2), translated) as stub:
        command = [
            *('translate', '--language=fr', f'--input={source}', f'--output={tmp_path}/fr'),
            *('--llm=m', f'--base-url={stub.address}', '--concurrency=4'),
        ]
        with subprocess.Popen(
            [sys.executable, '-m', 'experiments.ultralink', *command],
            cwd=ROOT,
            env={**os.environ, 'OPENAI_API_KEY': 'any'},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while sum(stub.answer_counts.values()) < 8:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            lines = process.stderr.read().splitlines()
        interrupted = [line for line in lines if line.startswith('m, this run: ')]
        made, repeated = run(*command), run(*command)
        tokens = stub.token_counts
    assert process.returncode == 130 and lines[-1].startswith('Interrupted; ')
    [line] = interrupted
    requests, prompt = re.match(r'm, this run: (\d+) requests, ([\d,]+) prompt', line).groups()
    assert int(requests) >= 8 and 0 < int(prompt.replace(',', '')) < tokens['prompt_tokens']
    assert made.returncode == repeated.returncode == 0 and repeated.stdout == made.stdout
    *_, this_run, all_runs = repeated.stderr.splitlines()
    assert this_run == 'm, this run: 0 requests, 0 prompt tokens, 0 completion tokens'
    assert made.stderr.splitlines()[-1] == all_runs
    assert all_runs.startswith('m, all runs in the cache: ')


def test_preview_and_estimate_are_separate():
    arguments = ('--input=in.jsonl', '--output=out', '--language=fr', '--llm=m')
    done = run('translate', *arguments, '--preview=3', '--estimate')
    assert (done.returncode, done.stderr) == (
        2,
        '--preview and --estimate are separate commands: first preview some items, then repeat the '
        'command with --estimate.\n',
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['documets'], "Unknown stage 'documets': did you mean documents or dialogues?"),
        (
            ['documents', '--language=xx'],
            f"Unknown language 'xx': known are {', '.join(sorted(LANGUAGES))}.",
        ),
        (
            ['dialogues', '--llm=local:none'],
            '--llm=local:none: this is neither a run directory nor',
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, weights, arguments, message):
    rest = [f'--tokenizer={weights}', f'--output={tmp_path}/out', '--input=none.jsonl']
    done = run(*arguments, *rest)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(message) and done.stderr.count('\n') == 1, done.stderr


def test_a_missing_key_is_one_line(tmp_path, weights):
    source = write_rows(tmp_path / 'in.jsonl', [])
    done = run(
        'dialogues',
        f'--input={source}',
        f'--tokenizer={weights}',
        f'--output={tmp_path}/out',
        '--llm=m',
        OPENAI_API_KEY='',
    )
    assert done.returncode == 2
    assert done.stderr.startswith('The environment variable ') and done.stderr.count('\n') == 1


def test_help_shows_an_example_and_the_flags():
    done = run('dialogues', '--help')
    assert done.returncode == 0
    assert 'python -m experiments.ultralink dialogues --input=' in done.stdout
    assert 'smollm2-135m, which `make setup` installs' in ' '.join(done.stdout.split())
    for flag in ('--tokenizer', '--output', '--llm', '--token_limit', '--stop_probability'):
        assert f'\n  {flag}: ' in done.stdout


def test_bad_rows_are_named_by_file_and_row(tmp_path, weights):
    broken = tmp_path / 'wiki_00'
    broken.write_text('<doc id="1" title="t">\nText.\n')
    done = run(
        'documents',
        '--language=en',
        f'--input={broken}',
        f'--tokenizer={weights}',
        f'--output={tmp_path}/out',
    )
    assert done.returncode == 2
    assert done.stderr == f'{broken}:1: the document that begins here has no </doc>.\n'
    assert not (tmp_path / 'out').exists(), 'what is refused leaves nothing behind'


def test_the_bare_help_lists_the_commands_by_group():
    done = run('--help')
    assert done.returncode == 0
    for line in (
        'Make data: generate, select, translate and prune conversations; inspect what happened.',
        '  explain          Show what each stage did with an item: kept, or rejected and why.',
        'Release data: write, read and describe files of conversations.',
        'Evaluate models: score and compare answers, and check translated problems.',
    ):
        assert f'\n{line}\n' in done.stdout


def test_a_dropped_document_is_explained_and_the_next_command_is_named(tmp_path, weights):
    rows = [document('zh', 0), {'id': '短文', 'title': '短', 'text': '太短了。'}]
    source = write_rows(tmp_path / 'wiki.jsonl', rows)
    tokenizer, documents = f'--tokenizer={weights}', f'{tmp_path}/documents'
    made = run(
        'documents', '--language=zh', f'--input={source}', tokenizer, f'--output={documents}'
    )
    assert made.returncode == 0, made.stderr
    explained = run('explain', '短文', f'--stages={tmp_path}')
    assert explained.stdout == (
        f'documents ({documents})\n'
        '  rejected: short (12 bytes, so fewer than 1000 tokens); input wiki.jsonl:2\n'
        '      | 太短了。\n'
    )
    unknown = run('explain', '没有', f'--stages={tmp_path}')
    assert unknown.returncode == 2
    assert unknown.stderr.startswith(f"No stage in {tmp_path} has an item '没有'")
    wrong = run('prune', f'--input={documents}', f'--output={tmp_path}/pruned')
    assert (wrong.returncode, wrong.stderr) == (
        2,
        f'{documents} is the output of `documents`; run `dialogues` next.\n',
    )
