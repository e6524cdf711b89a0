import random

import pytest

from malora_jax.data import Example, Task, TaskSplit, exact_match
from tests.helpers.data import ByteTokenizer


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def splits() -> list[TaskSplit]:
    """Three tasks with short examples, 40 for training and 10 held out each."""
    rng = random.Random(0)

    def examples(letter: str, numbers: range) -> list[Example]:
        return [Example(f'{letter}{n}' * rng.randint(1, 6), f'{n}', {}) for n in numbers]

    return [
        TaskSplit(
            Task(letter, None, exact_match),
            examples(letter, range(100, 140)),
            examples(letter, range(140, 150)),
            1_000,
        )
        for letter in 'abc'
    ]
