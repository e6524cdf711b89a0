import numpy as np
import pytest

from malora_jax.data import Example, encode_example, encode_prompt, end_token_id, get_template
from malora_jax.data.templates import FixedTemplate
from malora_jax.errors import UserError
from tests.helpers.data import ByteTokenizer

BARE = get_template('bare')
BRIEF = FixedTemplate('brief', before='>', between=':', answer_prefix='', end_token=None)


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
    assert tokenizer.decode(answer[:-1]) == template.completion(tokenizer, 'Why so?', 'Because.')
    assert answer[-1] == end_token_id(tokenizer, template)


def test_a_long_example_is_an_error(tokenizer):
    example = Example('abcdef', 'xy', {})
    fitting = encode_example(tokenizer, BRIEF, example, 0, 10)
    assert tokenizer.decode(fitting['inputs'].tolist()) == '>abcdef:xy'
    with pytest.raises(UserError, match=r"data.sequence_length is 9; .* at least 10 .* 'abcdef'"):
        encode_example(tokenizer, BRIEF, example, 0, 9)


def test_end_tokens(tokenizer):
    assert end_token_id(tokenizer, get_template('chatml')) == 257
    assert end_token_id(tokenizer, get_template('plain')) == tokenizer.eos_id
    with pytest.raises(UserError, match=r"'odd' ends answers with '</s>'.*'chat' or 'plain'\.$"):
        end_token_id(tokenizer, FixedTemplate('odd', '', '', '', end_token='</s>'))


def cut(tokenizer, prompt, answer, length):
    """Return how many 'p' and 'a' remain after truncation, and whether the answer still ends."""
    encoded = encode_example(
        tokenizer, BARE, Example('p' * prompt, 'a' * answer, {}), 0, length, truncate=True
    )
    assert len(encoded['inputs']) == min(length, prompt + answer)
    tokens = [*encoded['inputs'].tolist(), int(encoded['targets'][-1])]
    assert (encoded['targets'][:-1] == encoded['inputs'][1:]).all()
    # Only the answer and its end token are targets with loss.
    assert (encoded['loss_mask'].astype(bool) == (encoded['targets'] != ord('p'))).all()
    return tokens.count(ord('p')), tokens.count(ord('a')), tokens[-1] == tokenizer.eos_id


@pytest.mark.parametrize(
    ('prompt', 'answer', 'left'),
    [
        (4, 4, (4, 4, True)),  # Fits.
        (6, 4, (6, 4, True)),
        (7, 4, (6, 4, True)),  # The prompt loses its start.
        (100, 1, (9, 1, True)),
        (4, 100, (4, 7, False)),  # The answer loses its end and the end token.
        (100, 100, (6, 5, False)),  # The answer keeps half.
        (6, 5, (6, 5, False)),
    ],
)
def test_truncation(tokenizer, prompt, answer, left):
    assert cut(tokenizer, prompt, answer, 10) == left


def test_a_cut_prompt_keeps_its_end_and_its_bos_token():
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = 256
    example = Example('abcdefghij', 'xy', {})
    encoded = encode_example(tokenizer, BARE, example, 0, 6, truncate=True)
    assert encoded['inputs'].tolist() == [256, *b'hijxy']
    assert encoded['targets'].tolist() == [*b'hijxy', tokenizer.eos_id]
    assert encoded['loss_mask'].tolist() == [0, 0, 0, 1, 1, 1]
