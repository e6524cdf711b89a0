"""Batched generation for a file of prompts: answered, interrupted and resumed."""

import json
from pathlib import Path

import pytest

from malora_jax.errors import UserError
from malora_jax.inference import batch
from malora_jax.inference.language_model import GenerationConfig
from malora_jax.models.generate import Generator
from tests.helpers.language_model import language_model

ROWS = [
    {'prompt': 'Why?', 'id': 7},
    {'messages': [{'role': 'user', 'content': 'Where?'}]},
    {'prompt': 'Who?'},
    {'prompt': 'What is it?', 'note': 'ü'},
]
HOW = GenerationConfig(max_new_tokens=20, temperature=0.7, seed=2)


pytestmark = pytest.mark.usefixtures('compile_quickly')


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / 'prompts.jsonl'
    path.write_text('\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS), 'utf-8')
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def test_each_row_gets_an_answer_and_keeps_what_it_has(source):
    target = source.with_name('answers.jsonl')
    written = batch.answer_file(language_model(), source, target, HOW)
    assert written.answers == 4 and 4 <= written.tokens <= 80
    found = read(target)
    assert [{k: v for k, v in row.items() if k != 'answer'} for row in found] == ROWS
    assert len({row['answer'] for row in found}) == 4
    assert {path.name for path in source.parent.iterdir()} == {'prompts.jsonl', 'answers.jsonl'}


def test_an_interrupted_file_goes_on(source, monkeypatch):
    whole, target = source.with_name('whole.jsonl'), source.with_name('answers.jsonl')
    batch.answer_file(language_model(), source, whole, HOW)
    finished = Generator.as_completed

    def interrupted(*arguments):
        for count, found in enumerate(finished(*arguments)):
            if count == 2:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(Generator, 'as_completed', interrupted)
        with pytest.raises(KeyboardInterrupt):
            batch.answer_file(language_model(), source, target, HOW)
    partial = source.with_name('answers.jsonl.partial')
    assert not target.exists() and len(read(partial)) == 3
    with partial.open('a') as file:
        file.write('{"row": 1, "answ')  # A kill in the middle of writing a line.
    other = GenerationConfig(max_new_tokens=20, temperature=0.7, seed=3)
    with pytest.raises(UserError) as caught:
        batch.answer_file(language_model(), source, target, other)
    assert str(caught.value) == (
        f'{partial} was started with other prompts or settings: remove it, or choose another '
        '--output.'
    )
    assert batch.answer_file(language_model(), source, target, HOW).answers == 2
    assert target.read_bytes() == whole.read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize(
    'line, expected',
    [
        ('{"prompt": "a"', 'line 2 is not valid JSON ('),
        ('["a"]', "line 2 must be an object with a 'prompt', or with 'messages'."),
        ('{"prompt": 3}', "line 2 must be an object with a 'prompt', or with 'messages'."),
        ('{"messages": []}', "line 2: A conversation must end with a message of role 'user'."),
    ],
)
def test_a_row_that_is_none(tmp_path, line, expected):
    source = tmp_path / 'prompts.jsonl'
    source.write_text('{"prompt": "a"}\n' + line + '\n')
    with pytest.raises(UserError) as caught:
        batch.answer_file(language_model(), source, tmp_path / 'a.jsonl', HOW)
    assert str(caught.value).startswith(f'{source} {expected}')
    assert [path.name for path in tmp_path.iterdir()] == ['prompts.jsonl']


def test_a_file_without_rows(tmp_path):
    source = tmp_path / 'prompts.jsonl'
    source.write_text('\n')
    with pytest.raises(UserError, match=r'prompts\.jsonl has no rows'):
        batch.answer_file(language_model(), source, tmp_path / 'a.jsonl', HOW)
