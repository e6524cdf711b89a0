import random

import pytest
from data_helpers import ByteTokenizer

from malora_jax.data import Example, Split


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def splits() -> list[Split]:
    """Three tasks with 40 short training examples each, in bytes about as long as real tokens."""
    rng = random.Random(0)

    def examples(letter: str) -> list[Example]:
        return [Example(f'{letter}{n}' * rng.randint(1, 6), f'{n}', {}) for n in range(100, 140)]

    return [Split(letter, examples(letter), [], 1_000) for letter in 'abc']
