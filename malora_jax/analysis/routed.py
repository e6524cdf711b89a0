"""Routing decisions of a run's routers on held-out questions, summed for each question.

Dimension letters: B rows, T positions, N = B · T tokens, G groups of tokens, L layers, E experts,
Q questions, W words (tokens of the vocabulary).
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from malora_jax.adapters.routers import RoutingSums
from malora_jax.models import Decoder
from malora_jax.training.step import Batch, by_path

# Routing is counted for at most this many of the most frequent tokens, with a minimum number of
# occurrences.
_WORDS, _LEAST = 512, 8


class Questions(NamedTuple):
    """Packed held-out questions with their answers.

    Attributes:
        batches: Packed batches. Each has an additional entry `groups`, (B, T) int32: index within
            the batch of the question that a token belongs to, -1 for padding.
        task: (Q,) task index of each question, in the order of the batches.
        per_batch: Number of questions in each batch.
        words: (W,) ids of the most frequent tokens, whose routing is counted token by token.
        counts: (W,) number of occurrences of each of these tokens.
    """

    batches: Sequence[Batch]
    task: np.ndarray
    per_batch: Sequence[int]
    words: np.ndarray
    counts: np.ndarray


class Routed(NamedTuple):
    """Sums of routing decisions by linear module.

    Attributes:
        questions: Sums over the tokens of each question; leaves (Q, L, E).
        words: (L, W, E) number of times that each frequent token was routed to each expert.
    """

    questions: dict[str, RoutingSums]
    words: dict[str, np.ndarray]


def questions(batches: Sequence[Batch]) -> Questions:
    """Number the questions of packed batches, and find the most frequent tokens.

    Args:
        batches: Packed batches of held-out questions.
    """
    numbered, tasks, per_batch = [], [], []
    for batch in batches:
        segments_BT = np.asarray(batch['segment_ids'])
        rows_BT = np.arange(len(segments_BT))[:, None]
        # A question is a pair of row and segment, which gets one number; padding is segment 0.
        pairs_BT = rows_BT * (segments_BT.max() + 1) + segments_BT
        real_BT = segments_BT > 0
        found, first = np.unique(pairs_BT[real_BT], return_index=True)
        groups_BT = np.where(real_BT, np.searchsorted(found, pairs_BT), -1)
        numbered.append({**batch, 'groups': groups_BT.astype(np.int32)})
        tasks.append(np.asarray(batch['task_ids'])[real_BT][first])
        per_batch.append(len(found))
    tokens = np.concatenate([np.asarray(b['inputs'])[b['segment_ids'] > 0] for b in batches])
    ids, counts = np.unique(tokens, return_counts=True)
    order = np.argsort(-counts, kind='stable')[:_WORDS]
    order = order[counts[order] >= _LEAST]
    return Questions(numbered, np.concatenate(tasks), per_batch, ids[order], counts[order])


def route(
    model: Decoder, variables: Any, asked: Questions, description: str | None = None
) -> Routed:
    """Run the model over the questions, without dropout, and sum its routing decisions.

    Args:
        model: Decoder with routers.
        variables: Variable collections of the model.
        asked: Held-out questions.
        description: Label of the progress bar.
    """
    most = max(asked.per_batch)
    parts: dict[str, list[RoutingSums]] = {}
    words: dict[str, Any] = {}
    bar = tqdm.tqdm(asked.batches, desc=description, unit='batch', dynamic_ncols=True)
    for batch, count in zip(bar, asked.per_batch, strict=True):
        for linear, sums in _sums(model, variables, batch, jnp.asarray(asked.words), most):
            own = jax.tree.map(lambda leaf, n=count: leaf[:, :n].swapaxes(0, 1), sums)
            parts.setdefault(linear, []).append(own)
            words[linear] = words.get(linear, 0) + sums.load[:, most:]
    joined = {
        linear: jax.tree.map(lambda *leaves: np.concatenate(leaves), *each)
        for linear, each in parts.items()
    }
    return Routed(joined, words)


def _sums(
    model: Decoder, variables: Any, batch: Batch, words_W: jax.Array, most: int
) -> Iterator[tuple[str, RoutingSums]]:
    """Yield each linear module's sums: leaves (L, most + W, E), by question, then by word."""
    kept = {key: batch[key] for key in ('inputs', 'positions', 'segment_ids', 'groups')}
    found: Mapping[str, RoutingSums] = _compiled(model, variables, kept, words_W, most)
    for path, sums in found.items():
        yield path.rsplit('/', 1)[-1], jax.tree.map(np.asarray, sums)


@functools.partial(jax.jit, static_argnames=('model', 'most'))
def _compiled(
    model: Decoder, variables: Any, batch: Batch, words_W: jax.Array, most: int
) -> dict[str, RoutingSums]:
    # Sums over the tokens of a question and over the occurrences of a word are both sums over
    # groups of tokens. Groups may overlap, so one forward pass computes both.
    question_NG = jax.nn.one_hot(batch['groups'].reshape(-1), most, dtype=jnp.float32)
    is_word_NW = batch['inputs'].reshape(-1, 1) == words_W[None]
    is_real_N1 = batch['segment_ids'].reshape(-1, 1) > 0
    groups_NG = jnp.concatenate(
        [question_NG, (is_word_NW & is_real_N1).astype(jnp.float32)], axis=1
    )
    _, collections = model.apply(
        variables,
        batch['inputs'],
        batch['positions'],
        batch['segment_ids'],
        groups_NG,
        mutable=['routing'],
    )
    return by_path(collections['routing'])
