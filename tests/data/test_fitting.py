import numpy as np
import pytest

from malora_jax.data import Example, encode_example, encode_examples, get_template
from malora_jax.errors import UserError

PLAIN = get_template('plain')


def test_all_are_encoded(tokenizer, capfd):
    examples = [Example('a', 'b', {}), Example('cd', 'e', {})]
    found = encode_examples('mine', examples, tokenizer, PLAIN, 3, 64)
    for encoded, example in zip(found, examples, strict=True):
        expected = encode_example(tokenizer, PLAIN, example, 3, 64)
        for key in expected:
            np.testing.assert_array_equal(encoded[key], expected[key])
    assert capfd.readouterr() == ('', '')


def test_those_that_do_not_fit_are_counted_and_the_length_named_would_do(tokenizer):
    def example(length: int, **metadata) -> Example:
        return Example('q' * length, 'a', metadata)

    examples = [example(n, row=f'a.csv line {n}') for n in (8, 99, 200, 64)]
    frame = len('Question: \nAnswer: a')
    with pytest.raises(UserError) as caught:
        encode_examples('mine', examples, tokenizer, PLAIN, 0, 64)
    assert str(caught.value) == (
        f"Task 'mine': data.sequence_length is 64; it must be at least {200 + frame} for the "
        f"longest (a.csv line 200, '{'q' * 40}') of 3 examples that do not fit."
    )
    assert len(encode_examples('mine', examples, tokenizer, PLAIN, 0, 200 + frame)) == 4


def test_examples_without_a_row(tokenizer):
    with pytest.raises(UserError, match=r"for the longest \('qqq'\) of 1 examples that do not fit"):
        encode_examples('mine', [Example('qqq', 'a', {})], tokenizer, PLAIN, 0, 8)
