import numpy as np
import pytest

from malora_jax.data import Example, Template, encode_example, encode_prompt, end_id, get_template
from malora_jax.errors import UserError

BRIEF = Template('brief', before='>', between=':', space='', end=None)


def test_by_hand(tokenizer):
    encoded = encode_example(tokenizer, BRIEF, Example('ab', 'xy', {}), 7, 32)
    assert tokenizer.decode(encoded['inputs'].tolist()) == '>ab:xy'
    assert tokenizer.decode(encoded['targets'].tolist()) == 'ab:xy<|end|>'
    assert encoded['loss_mask'].tolist() == [0, 0, 0, 1, 1, 1]
    assert encoded['task_ids'].tolist() == [7] * 6
    assert {name: array.dtype for name, array in encoded.items()} == {
        'inputs': np.int32,
        'targets': np.int32,
        'loss_mask': np.float32,
        'task_ids': np.int32,
    }


@pytest.mark.parametrize('name', ['chatml', 'plain'])
def test_training_sees_the_prompt_that_generation_starts_from(tokenizer, name):
    template, example = get_template(name), Example('Why so?', 'Because.', {})
    encoded = encode_example(tokenizer, template, example, 0, 256)
    prompt = encode_prompt(tokenizer, template, example.question)
    first = int(np.argmax(encoded['loss_mask']))
    assert encoded['inputs'][: first + 1].tolist() == prompt
    answer = encoded['targets'][encoded['loss_mask'] == 1].tolist()
    assert tokenizer.decode(answer[:-1]) == template.completion('Because.')
    assert answer[-1] == end_id(tokenizer, template)


def test_a_long_prompt_loses_its_beginning(tokenizer):
    encoded = encode_example(tokenizer, BRIEF, Example('abcdef', 'xy', {}), 0, 5)
    assert tokenizer.decode(encoded['inputs'].tolist()) == 'ef:xy'
    assert encoded['loss_mask'].tolist() == [0, 0, 1, 1, 1]


def test_one_token_of_the_prompt_is_enough(tokenizer):
    encoded = encode_example(tokenizer, BRIEF, Example('abcdef', 'xy', {}), 0, 3)
    assert tokenizer.decode(encoded['inputs'].tolist()) == ':xy'
    assert encoded['loss_mask'].tolist() == [1, 1, 1]


def test_a_long_answer_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"answer of 3 tokens .* in 3 positions: 'xyz'"):
        encode_example(tokenizer, BRIEF, Example('abcdef', 'xyz', {}), 0, 3)


def test_end_tokens(tokenizer):
    assert end_id(tokenizer, get_template('chatml')) == 257
    assert end_id(tokenizer, get_template('plain')) == tokenizer.eos_id
    with pytest.raises(UserError, match=r"'odd' ends answers with '</s>'"):
        end_id(tokenizer, Template('odd', '', '', '', end='</s>'))
