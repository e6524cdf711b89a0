"""A byte tokenizer whose tokens are easy to check by hand, and the inverse of packing."""

from itertools import islice
from typing import ClassVar

import numpy as np

from malora_jax.data import get_template, mixture_shares, train_iterator

BATCH_KEYS = ['inputs', 'loss_mask', 'positions', 'segment_ids', 'targets', 'task_ids']
EXAMPLE_KEYS = ['inputs', 'targets', 'loss_mask', 'task_ids']


class ByteTokenizer:
    """Tokenizer with one token per byte and three special tokens, easy to check by hand."""

    SPECIAL = ('<|im_start|>', '<|im_end|>', '<|end|>')
    eos_id = 258
    bos_id: int | None = None
    chat_template: str | None = None
    named_tokens: ClassVar[dict[str, str]] = {'eos_token': '<|end|>'}
    special_tokens = frozenset(SPECIAL)
    max_token_chars = max(map(len, SPECIAL))

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        for number, special in enumerate(self.SPECIAL):
            before, found, after = text.partition(special)
            if found:
                return [*self.encode(before), 256 + number, *self.encode(after)]
        return list(text.encode())

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        return ''.join(self.SPECIAL[i - 256] if i >= 256 else chr(i) for i in ids)

    def token_to_id(self, token: str) -> int | None:
        return 256 + self.SPECIAL.index(token) if token in self.SPECIAL else None


def unpack(batches) -> list[dict[str, np.ndarray]]:
    """Return the examples of packed batches, after checking segment ids, positions and padding."""
    examples = []
    for batch in batches:
        assert sorted(batch) == BATCH_KEYS
        for row in range(len(batch['inputs'])):
            segments = batch['segment_ids'][row]
            count = segments.max()
            filled = np.repeat(np.arange(1, count + 1), np.bincount(segments)[1:])
            np.testing.assert_array_equal(segments[: len(filled)], filled)
            for key in BATCH_KEYS:
                assert not batch[key][row][len(filled) :].any()
            for segment in range(1, count + 1):
                here = segments == segment
                np.testing.assert_array_equal(batch['positions'][row][here], np.arange(here.sum()))
                examples.append({key: batch[key][row][here] for key in EXAMPLE_KEYS})
    return examples


def as_bytes(examples) -> list[bytes]:
    """Return examples as sorted byte strings, so that sets of examples can be compared."""
    return sorted(b'|'.join(example[key].tobytes() for key in EXAMPLE_KEYS) for example in examples)


def make_train_iterator(splits, tokenizer, weights=(), seed=0, **settings):
    return train_iterator(
        splits,
        tokenizer,
        get_template('plain'),
        sequence_length=256,
        batch_size=4,
        shares=mixture_shares(splits, weights, size_exponent=0.0),
        seed=seed,
        **settings,
    )


def assert_same_batches(left, right):
    for a, b in zip(left, right, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def take(iterator, count):
    return list(islice(iterator, count))
