"""Conversations of several turns: training learns every answer, and nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data import Example, FileTask, encode_example, encode_prompt, get_template
from malora_jax.data.encoding import count_positions, encode_turns, truncate_turns
from malora_jax.data.file_tasks import read_examples
from malora_jax.data.templates import FixedTemplate
from malora_jax.data.token_counts import measure_examples, truncate_conversation
from malora_jax.errors import UserError
from tests.helpers.data import ByteTokenizer

BRIEF = FixedTemplate(
    'brief', before='>', between=':', answer_prefix=' ', end_token='<|end|>', turn_separator='~'
)
CHAT = Example('e', 'ff', {}, (('a', 'bb'), ('cc', 'd')))
# The usual ChatML template.
CHATML = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
# Drops the content of earlier answers, as templates of reasoning models drop their thoughts.
FORGETFUL = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n'
    "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def with_template(source: str) -> ByteTokenizer:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = source
    return tokenizer


def messages(example: Example, last: bool) -> list[dict[str, str]]:
    turns = (*example.history, (example.question, example.answer))
    made = [
        {'role': role, 'content': text}
        for turn in turns
        for role, text in zip(('user', 'assistant'), turn, strict=True)
    ]
    return made if last else made[:-1]


def test_by_hand(tokenizer):
    encoded = encode_example(tokenizer, BRIEF, CHAT, 3, 64)
    assert tokenizer.decode(encoded['inputs'].tolist()) == ('>a: bb<|end|>~>cc: d<|end|>~>e: ff')
    learnt = np.where(encoded['loss_mask'] == 1, encoded['targets'], ord('.')).tolist()
    assert tokenizer.decode(learnt) == ('.. bb<|end|>..... d<|end|>.... ff<|end|>')
    assert encoded['loss_mask'].dtype == np.float32
    assert encoded['task_ids'].tolist() == [3] * len(learnt)


def test_a_single_turn_is_as_before(tokenizer):
    example = Example('ab', 'xy', {})
    encoded = encode_example(tokenizer, BRIEF, example, 0, 64)
    assert tokenizer.decode(encoded['inputs'].tolist()) == '>ab: xy'
    assert encoded['loss_mask'].tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize('name', ['chatml', 'chat'])
def test_it_is_the_conversation_that_is_served(name):
    """Serving gives the model the same tokens that training did."""
    tokenizer, template = with_template(CHATML), get_template(name)
    prompt = encode_prompt(tokenizer, template, CHAT.question, CHAT.history)
    text = template.conversation(tokenizer, messages(CHAT, last=False))
    assert prompt == tokenizer.encode(text)
    encoded = encode_example(tokenizer, template, CHAT, 0, 512)
    assert encoded['inputs'][: len(prompt)].tolist() == prompt
    assert not encoded['loss_mask'][len(prompt) - 2]


def test_the_template_that_ultralink_trained_with(tokenizer):
    text = get_template('inst').conversation(tokenizer, messages(CHAT, last=False))
    # The tokenizer adds the first <s>.
    assert text == '[INST] a [/INST] bb</s><s>[INST] cc [/INST] d</s><s>[INST] e [/INST]'


def test_a_template_that_rewrites_earlier_answers_is_refused():
    with pytest.raises(UserError, match='renders an answer differently when another question'):
        encode_example(with_template(FORGETFUL), get_template('chat'), CHAT, 0, 512)


def test_later_turns_are_left_out_where_there_is_no_room(tokenizer):
    turns = encode_turns(tokenizer, BRIEF, CHAT)
    lengths = [count_positions(turns[:count]) for count in (1, 2, 3)]
    assert lengths == [6, 14, 22]
    for length, kept in ((22, 3), (21, 2), (14, 2), (13, 1), (6, 1)):
        assert truncate_turns(turns, length, None) == turns[:kept]
    # With only the first turn left, the answer keeps half of the length.
    assert truncate_turns(turns, 4, None) == [(list(b'>a:'), list(b' b'))]


@given(
    st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1), st.integers(1, 80)
)
def test_sizes_are_those_of_what_is_made(turns, length):
    tokenizer, template = ByteTokenizer(), get_template('chatml')
    *earlier, (question, answer) = turns
    example = Example(question, answer, {}, tuple(earlier))
    size = measure_examples('some', [example], tokenizer, template, length, truncate=True)
    encoded = encode_example(tokenizer, template, example, 0, length, truncate=True)
    assert size.tokens == len(encoded['inputs']) <= length
    assert size.answer_tokens == encoded['loss_mask'].sum()
    assert size.truncated == (size.longest > length)
    assert size.dropped_answers + int(
        np.diff(encoded['loss_mask'], prepend=0).clip(0).sum()
    ) == len(turns)
    first = Example(*turns[0], {})
    alone = measure_examples('some', [first], tokenizer, template, length, truncate=True)
    assert size.cut_first_turns == alone.truncated


def test_a_held_out_chat_asks_an_earlier_question_where_there_is_no_room(tokenizer):
    found = {
        length: truncate_conversation(CHAT, tokenizer, BRIEF, length) for length in (22, 21, 13, 2)
    }
    assert found[22] == CHAT
    assert found[21] == Example('cc', 'd', {'answers': ('d',)}, (('a', 'bb'),))
    assert found[13] == found[2] == Example('a', 'bb', {'answers': ('bb',)})


# Conversations from files.


def write(tmp_path, *rows) -> FileTask:
    path = tmp_path / 'chats.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
    return FileTask('chats', str(path), 'q', 'a', 'rouge_l', turns_field='data')


def test_rows_of_turns(tmp_path):
    task = write(tmp_path, {'data': [' a', 'b ', 'c', 'd']}, {'data': ['a', 'b', 'c', 'd']})
    read = read_examples(task, task.path)
    (example,) = read.examples
    assert (example.question, example.answer, example.history) == ('c', 'd', (('a', 'b'),))
    assert (read.rows, read.duplicates) == (2, 1)


@pytest.mark.parametrize(
    'value, expected',
    [
        (['a', 'b', 'c'], 'must be a list with an even number of texts, alternating between user'),
        ([], 'must be a list with an even number of texts'),
        ('a', 'must be a list with an even number of texts'),
        (['a', ' '], "text 2 of 'data' must be text, not empty"),
        (['a', None], "text 2 of 'data' must be text"),
    ],
)
def test_rows_that_are_none(tmp_path, value, expected):
    task = write(tmp_path, {'data': ['a', 'b']}, {'data': value})
    with pytest.raises(UserError, match=expected) as caught:
        read_examples(task, task.path)
    assert f'{task.path} line 2: ' in str(caught.value)


def test_chats_that_begin_alike_are_on_one_side(tmp_path):
    rows = [{'data': [f'q{n // 2}', 'b', f'c{n}', 'd']} for n in range(40)]
    split = write(tmp_path, *rows).split(0, 0, held_out=4, validation=3)
    openings = [
        {e.first_question for e in part} for part in (split.held_out, split.validation, split.train)
    ]
    assert [len(part) for part in openings] == [4, 3, 13]
    assert len(set.union(*openings)) == 20
    assert len(split.train) == 26
    assert all(e.metadata['answers'] == ('d',) for e in split.held_out)
