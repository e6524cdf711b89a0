import pytest

from malora_jax.data import Example, TokenCounts, encode_example, get_template, measure_examples
from malora_jax.errors import UserError
from tests.helpers.data import ByteTokenizer

PLAIN = get_template('plain')
FRAME = len('Question: \nAnswer: ')


def example(length: int, answer: str = 'a', **metadata) -> Example:
    return Example('q' * length, answer, metadata)


def test_all_are_measured(tokenizer, capfd):
    found = measure_examples('mine', [example(1, 'bc'), example(2)], tokenizer, PLAIN, 64)
    # The space before an answer belongs to the answer. The end token is a target but not an input.
    assert found == TokenCounts(2, 2 * FRAME + 3 + 3, 4 + 3, 0, FRAME + 3)
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('bos_id', [None, 258])
def test_what_is_measured_is_what_is_encoded(bos_id):
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = bos_id
    lengths = [(q, a) for q in (1, 20, 60, 300) for a in (1, 20, 60, 300)]
    examples = [example(q, 'a' * a) for q, a in lengths]
    found = measure_examples('mine', examples, tokenizer, PLAIN, 64, truncate=True)
    encoded = [encode_example(tokenizer, PLAIN, e, 0, 64, truncate=True) for e in examples]
    assert found.tokens == sum(len(e['inputs']) for e in encoded)
    assert found.answer_tokens == sum(e['loss_mask'].sum() for e in encoded)
    start = FRAME + (bos_id is not None)
    assert found.truncated == sum(q + a + start > 64 for q, a in lengths) > 0
    assert found.longest == 600 + start


def test_those_that_do_not_fit_are_counted_and_the_length_named_would_do(tokenizer):
    examples = [example(n, row=f'a.csv line {n}') for n in (8, 99, 200, 64)]
    with pytest.raises(UserError) as caught:
        measure_examples('mine', examples, tokenizer, PLAIN, 64)
    assert str(caught.value) == (
        f"Task 'mine': data.sequence_length is 64; it must be at least {201 + FRAME} for the "
        f"longest (a.csv line 200, '{'q' * 40}') of 3 examples that do not fit, or data.truncate "
        'True.'
    )
    assert measure_examples('mine', examples, tokenizer, PLAIN, 201 + FRAME).examples == 4


def test_examples_without_a_row(tokenizer):
    with pytest.raises(UserError, match=r"for the longest \('qqq'\) of 1 examples that do not fit"):
        measure_examples('mine', [Example('qqq', 'a', {})], tokenizer, PLAIN, 8)
