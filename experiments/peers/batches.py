"""Batches of the same examples, packed for our system and padded for the peers.

B is the number of packed rows of a batch, and T is their length. N is the number of examples in
these rows, and S is the length of the longest example.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

# Label that torch's cross-entropy ignores.
IGNORE_INDEX = -100

SYNTHETIC_SHAPE = (4, 256)


class PeerBatch(NamedTuple):
    """Batch of examples for one step.

    Attributes:
        packed: Batch for our step; arrays (B, T).
        padded: Batch for the peers: `input_ids`, `labels` and `attention_mask`, (N, S) int64,
            padded on the right, as the peers' own data collators do it.
        tokens: Number of input tokens of `packed` that are not padding. The throughput of every
            system counts these, although the peers also read the last token of each example.
    """

    packed: Mapping[str, np.ndarray]
    padded: Mapping[str, np.ndarray]
    tokens: int


def synthetic_batches(vocab_size: int, seed: int) -> Iterator[PeerBatch]:
    """Yield batches of random tokens without end; the rows are full, so there is no padding.

    Each token is the target of the position before it.

    Args:
        vocab_size: Size of the vocabulary.
        seed: Random seed of the tokens.
    """
    rng = np.random.default_rng(seed)
    B, T = SYNTHETIC_SHAPE
    while True:
        tokens_BT = rng.integers(vocab_size, size=(B, T), dtype=np.int32)
        packed = {
            'inputs': tokens_BT,
            'targets': np.roll(tokens_BT, -1, axis=1),
            # The last token predicts nothing, because the peers shift labels within a row.
            'loss_mask': np.broadcast_to(np.arange(T) < T - 1, (B, T)).astype(np.float32),
            'task_ids': np.zeros((B, T), np.int32),
            'segment_ids': np.ones((B, T), np.int32),
            'positions': np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        }
        ids = tokens_BT.astype(np.int64)
        padded = {'input_ids': ids, 'labels': ids, 'attention_mask': np.ones_like(ids)}
        yield PeerBatch(packed, padded, tokens_BT.size)


def real_batches(
    batches: Iterator[Mapping[str, np.ndarray]], padding_id: int
) -> Iterator[PeerBatch]:
    """Yield packed batches, and the same examples with one example per row for the peers.

    Args:
        batches: Packed batches of the training data.
        padding_id: Token id of the padding.
    """
    for packed in batches:
        padded = pad(unpack(packed), padding_id)
        yield PeerBatch(packed, padded, int((packed['segment_ids'] > 0).sum()))


def unpack(packed: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the tokens and the labels of each example of a packed batch.

    The tokens are the inputs of the example, followed by its last target. The label of a token is
    the token itself if the loss counts its prediction, else `IGNORE_INDEX`.

    Args:
        packed: Packed batch, arrays (B, T).
    """
    examples = []
    for row in range(len(packed['inputs'])):
        segments_T = packed['segment_ids'][row]
        for segment in range(1, segments_T.max() + 1):
            inputs, targets, mask = (
                packed[name][row][segments_T == segment]
                for name in ('inputs', 'targets', 'loss_mask')
            )
            tokens = np.append(inputs, targets[-1])
            examples.append(
                (tokens, np.append(IGNORE_INDEX, np.where(mask > 0, targets, IGNORE_INDEX)))
            )
    return examples


def pad(examples: list[tuple[np.ndarray, np.ndarray]], padding_id: int) -> dict[str, np.ndarray]:
    """Return examples as one batch, padded on the right to the longest: see `PeerBatch.padded`.

    Args:
        examples: Tokens and labels of each example.
        padding_id: Token id of the padding.
    """
    shape = (len(examples), max(len(tokens) for tokens, _ in examples))
    padded = {
        'input_ids': np.full(shape, padding_id, np.int64),
        'labels': np.full(shape, IGNORE_INDEX, np.int64),
        'attention_mask': np.zeros(shape, np.int64),
    }
    for row, (tokens, labels) in enumerate(examples):
        padded['input_ids'][row, : len(tokens)] = tokens
        padded['labels'][row, : len(tokens)] = labels
        padded['attention_mask'][row, : len(tokens)] = 1
    return padded
