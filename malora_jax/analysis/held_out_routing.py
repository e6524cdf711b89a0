"""Routing decisions of a run's routers on held-out questions, summed for each question.

Dimension letters: B rows, T positions, N = B · T tokens, G groups of tokens, L layers, E experts,
Q questions, W frequent tokens of the vocabulary.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.load_balancing import RoutingSums
from malora_jax.models import Decoder
from malora_jax.progress import track
from malora_jax.training.step import Batch, routing_by_path

# Maximum number of frequent tokens, and the minimum number of occurrences of each.
_MAX_TOKENS, _MIN_OCCURRENCES = 512, 8


class HeldOutQuestions(NamedTuple):
    """Packed held-out questions with their answers.

    Attributes:
        batches: Packed batches with an additional entry `groups`, (B, T) int32: for each token, the
            index of its question within the batch; -1 for padding.
        task: (Q,) task index of each question, in the order of the batches.
        per_batch: Number of questions in each batch.
        tokens: (W,) ids of the most frequent tokens.
        counts: (W,) number of occurrences of each of these tokens.
    """

    batches: Sequence[Batch]
    task: np.ndarray
    per_batch: Sequence[int]
    tokens: np.ndarray
    counts: np.ndarray


class HeldOutRouting(NamedTuple):
    """Sums of routing decisions. Both attributes are dicts by name of the linear module.

    Attributes:
        by_question: Sums over the tokens of each question. `RoutingSums` has three arrays: the
            number of tokens routed to each expert, and the sums of router probabilities and of
            gates. Each array is (Q, L, E).
        by_token: (L, W, E) number of times that each frequent token was routed to each expert.
    """

    by_question: dict[str, RoutingSums]
    by_token: dict[str, np.ndarray]


def index_questions(batches: Sequence[Batch]) -> HeldOutQuestions:
    """Assign an index to each question of packed batches, and find the most frequent tokens.

    Args:
        batches: Packed batches of held-out questions with their answers.
    """
    numbered, tasks, per_batch = [], [], []
    for batch in batches:
        segments_BT = np.asarray(batch['segment_ids'])
        rows_BT = np.arange(len(segments_BT))[:, None]
        # Each question is a pair of row and segment, encoded as one integer. Segment 0 is padding.
        pairs_BT = rows_BT * (segments_BT.max() + 1) + segments_BT
        real_BT = segments_BT > 0
        question_pairs, first = np.unique(pairs_BT[real_BT], return_index=True)
        groups_BT = np.where(real_BT, np.searchsorted(question_pairs, pairs_BT), -1)
        numbered.append({**batch, 'groups': groups_BT.astype(np.int32)})
        tasks.append(np.asarray(batch['task_ids'])[real_BT][first])
        per_batch.append(len(question_pairs))
    tokens = np.concatenate([np.asarray(b['inputs'])[b['segment_ids'] > 0] for b in batches])
    ids, counts = np.unique(tokens, return_counts=True)
    order = np.argsort(-counts, kind='stable')[:_MAX_TOKENS]
    order = order[counts[order] >= _MIN_OCCURRENCES]
    return HeldOutQuestions(numbered, np.concatenate(tasks), per_batch, ids[order], counts[order])


def sum_routing(
    model: Decoder, variables: Any, question_set: HeldOutQuestions, description: str
) -> HeldOutRouting:
    """Run the model over the questions, without dropout, and sum its routing decisions.

    Args:
        model: Decoder with routers.
        variables: Variable collections of the model.
        question_set: Held-out questions.
        description: Label of the progress bar.
    """
    max_questions = max(question_set.per_batch)
    parts: dict[str, list[RoutingSums]] = {}
    by_token: dict[str, Any] = {}
    batches = track(question_set.batches, description, 'batch')
    for batch, count in zip(batches, question_set.per_batch, strict=True):
        for linear, sums in _sums(
            model, variables, batch, jnp.asarray(question_set.tokens), max_questions
        ):
            own = jax.tree.map(lambda leaf, n=count: leaf[:, :n].swapaxes(0, 1), sums)
            parts.setdefault(linear, []).append(own)
            by_token[linear] = by_token.get(linear, 0) + sums.load[:, max_questions:]
    joined = {
        linear: jax.tree.map(lambda *leaves: np.concatenate(leaves), *each)
        for linear, each in parts.items()
    }
    return HeldOutRouting(joined, by_token)


def _sums(
    model: Decoder, variables: Any, batch: Batch, tokens_W: jax.Array, max_questions: int
) -> Iterator[tuple[str, RoutingSums]]:
    """Run the model on one batch, and yield the name and the routing sums of each linear module.

    Args:
        model: Decoder with routers.
        variables: Variable collections of the model.
        batch: Packed batch with the entry `groups` of `HeldOutQuestions`.
        tokens_W: Ids of the frequent tokens.
        max_questions: Length of the question axis of the sums. If the batch has fewer questions,
            the rest of the axis is zero.

    Yields:
        The name of the linear module and its sums. Each array of the sums is
        (L, max_questions + W, E): first the sums over the tokens of each question, then the sums
        over the occurrences of each frequent token.
    """
    model_batch = {key: batch[key] for key in ('inputs', 'positions', 'segment_ids', 'groups')}
    sums_by_path: Mapping[str, RoutingSums] = _forward_routing_sums(
        model, variables, model_batch, tokens_W, max_questions
    )
    for path, sums in sums_by_path.items():
        yield path.rsplit('/', 1)[-1], jax.tree.map(np.asarray, sums)


@functools.partial(jax.jit, static_argnames=('model', 'max_questions'))
def _forward_routing_sums(
    model: Decoder, variables: Any, batch: Batch, tokens_W: jax.Array, max_questions: int
) -> dict[str, RoutingSums]:
    # Sums over the tokens of a question, and over the occurrences of a token of the vocabulary, are
    # both sums over groups of tokens. Groups may overlap, so one forward pass computes both.
    question_NG = jax.nn.one_hot(batch['groups'].reshape(-1), max_questions, dtype=jnp.float32)
    is_token_NW = batch['inputs'].reshape(-1, 1) == tokens_W[None]
    is_real_N1 = batch['segment_ids'].reshape(-1, 1) > 0
    groups_NG = jnp.concatenate(
        [question_NG, (is_token_NW & is_real_N1).astype(jnp.float32)], axis=1
    )
    _, collections = model.apply(
        variables,
        batch['inputs'],
        batch['positions'],
        batch['segment_ids'],
        groups_NG,
        mutable=['routing'],
    )
    return routing_by_path(collections['routing'])
