"""Log-likelihoods of continuations, given their contexts.

Texts are packed as in training: several texts in a row, each with its own segment id. The text of a
request is its context and continuation without the last token, which is only predicted. A text that
is equal to another text, or a prefix of it, needs no forward pass of its own. For example, if each
option of a question is one token, such as a letter, the texts of all options are equal, and one
forward pass is enough. The LM head runs only at the positions that predict a token of a
continuation.

Dimension letters: B rows of a batch, T positions of a row, N = B · T, D model width, V vocabulary,
P predictions that go through the LM head together.
"""

import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.distributed import sharding
from malora_jax.errors import UserError
from malora_jax.models import Decoder
from malora_jax.models.decoder import logits, output_head

CHUNK_SIZE = 256  # P: large enough for full speed, while the (P, V) logits stay small.

# Token ids of a context and token ids of its continuation; neither is empty.
LikelihoodRequest = tuple[Sequence[int], Sequence[int]]


class Likelihood(NamedTuple):
    """The log-likelihood of a continuation.

    Attributes:
        log_probability: Log-probability in nats, summed over the continuation's tokens.
        num_tokens: Number of tokens of the continuation.
        is_greedy: Whether greedy decoding would produce the continuation.
    """

    log_probability: float
    num_tokens: int
    is_greedy: bool


class _Batch(NamedTuple):
    """A batch of packed texts.

    Attributes:
        arrays: (3, B, T) int32; tokens, positions and segment ids.
        starts: Offset of each text's first token in the batch, flattened to (N,). The keys are the
            indices of the texts.
    """

    arrays: np.ndarray
    starts: dict[int, int]


def log_likelihoods(
    model: Decoder,
    variables: Any,
    requests: Sequence[LikelihoodRequest],
    *,
    batch_size: int,
    pad_multiple: int,
    advance: Callable[[int], object] | None = None,
) -> list[Likelihood]:
    """Return the log-likelihood of each continuation, given its context.

    A request may have one token more than the model's context length, because the last token is
    predicted but not an input. The context of a longer request is truncated on the left, as in
    EleutherAI's harness.

    Args:
        model: Decoder.
        variables: Variable collections of the decoder.
        requests: Token ids of contexts and continuations, in any order.
        batch_size: Number of rows in a batch if the rows have the minimum length, `pad_multiple`. A
            batch of longer rows has fewer rows, so that it has at most `batch_size * pad_multiple`
            positions. If a single row is longer than that, it is a batch of its own.
        pad_multiple: Rows are padded to a multiple of this number of tokens. A few times the usual
            length of a request is a good value, because several requests then fill a row with
            little padding. The decoder is compiled once for each batch shape that occurs.
        advance: Function that shows the progress. It is called after each batch with the number of
            requests that were scored.

    Returns:
        The likelihood of each request, in the order of `requests`. Apart from rounding, it does not
        depend on the other requests.

    Raises:
        UserError: A context or a continuation is empty, or a continuation has more tokens than the
            model's context.
    """
    texts = [_input_tokens(i, request, model.config.context) for i, request in enumerate(requests)]
    sums, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
    head_VD = output_head(model.config, variables['params'])
    for batch in _batches(texts, batch_size, pad_multiple):
        indices: list[int] = []
        targets: list[int] = []
        request_indices: list[int] = []
        for i, start in batch.starts.items():
            (_, continuation), end = requests[i], start + len(texts[i])
            indices += range(end - len(continuation), end)
            targets += continuation
            request_indices += [i] * len(continuation)
        hidden_ND = _hidden(model, variables, *batch.arrays)
        log_probability, is_greedy = _score_targets(hidden_ND, head_VD, indices, targets)
        np.add.at(sums, request_indices, log_probability)
        np.logical_and.at(greedy, request_indices, is_greedy)
        if advance:
            advance(len(batch.starts))
    return [
        Likelihood(float(total), len(continuation), bool(is_greedy))
        for (_, continuation), total, is_greedy in zip(requests, sums, greedy, strict=True)
    ]


def rolling_log_likelihoods(
    model: Decoder,
    variables: Any,
    texts: Sequence[Sequence[int]],
    prefix_id: int,
    *,
    batch_size: int,
    pad_multiple: int,
    advance: Callable[[float], object] | None = None,
) -> list[Likelihood]:
    """Return the log-likelihood of each whole text, which may be longer than the model's context.

    The perplexity of a text is exp(-log_probability / num_tokens).

    Args:
        model: Decoder.
        variables: Variable collections of the decoder.
        texts: Token ids of each text; `rolling_windows` splits long texts.
        prefix_id: Id of a token that is put in front of each text, to predict its first token.
        batch_size: Number of rows in a batch, as in `log_likelihoods`.
        pad_multiple: Rows are padded to a multiple of this length, as in `log_likelihoods`.
        advance: Function that shows the progress. It is called after each batch with the number of
            texts that were scored, which need not be whole.

    Returns:
        The likelihood of each text, in the order of `texts`.
    """
    parts = [rolling_windows(text, prefix_id, model.config.context) for text in texts]
    requests = [part for text in parts for part in text]
    scores = iter(
        log_likelihoods(
            model,
            variables,
            requests,
            batch_size=batch_size,
            pad_multiple=pad_multiple,
            advance=advance and (lambda count: advance(count * len(texts) / len(requests))),
        )
    )
    return [_sum_likelihoods([next(scores) for _ in text]) for text in parts]


def _sum_likelihoods(parts: Sequence[Likelihood]) -> Likelihood:
    return Likelihood(
        sum(part.log_probability for part in parts),
        sum(part.num_tokens for part in parts),
        all(part.is_greedy for part in parts),
    )


def rolling_windows(text: Sequence[int], prefix_id: int, length: int) -> list[LikelihoodRequest]:
    """Split a text into windows that fit into the context, and return a request for each window.

    The requests together predict each token of the text once. The windows are those of
    EleutherAI's harness: each has `length` input tokens, or fewer if the text is shorter. The last
    window is extended to the left until it has `length` tokens. The tokens that it then shares with
    the previous window are only its context, and are not predicted again.

    Args:
        text: Token ids of the text.
        prefix_id: Id of a token that is put in front of the text, to predict its first token.
        length: Maximum number of input tokens of a window.

    Returns:
        A request for each window, in the order of the text.
    """
    inputs = [prefix_id, *text]
    cut: list[LikelihoodRequest] = []
    for start in range(0, len(text), length):
        end = min(start + length, len(text))
        cut.append((inputs[max(0, end - length) : start + 1], text[start:end]))
    return cut


def _input_tokens(number: int, request: LikelihoodRequest, context_length: int) -> tuple[int, ...]:
    """Return the input tokens of a request: all but the last, truncated to the context length.

    Args:
        number: Index of the request, for error messages.
        request: Token ids of the context and of the continuation.
        context_length: Maximum number of input tokens.

    Raises:
        UserError: A part of the request is empty, or the continuation does not fit.
    """
    context, continuation = request
    if not len(context) or not len(continuation):
        empty = 'continuation' if len(context) else 'context'
        raise UserError(f'Request {number} has an empty {empty}; it must have at least one token.')
    if len(continuation) > context_length:
        raise UserError(
            f'Request {number} has a continuation of {len(continuation)} tokens; at most '
            f'{context_length} fit into the context of the model.'
        )
    return (*context, *continuation)[:-1][-context_length:]


def _batches(
    texts: Sequence[tuple[int, ...]], batch_size: int, pad_multiple: int
) -> Iterator[_Batch]:
    """Yield batches of all texts, starting with the longest rows.

    Args:
        texts: Input tokens of each request.
        batch_size: Number of rows in a batch, as in `log_likelihoods`.
        pad_multiple: Rows are padded to a multiple of this length, as in `log_likelihoods`.
    """
    groups = _group_by_prefix(texts)
    rows: dict[int, list[list[list[int]]]] = {}  # By row length; a row is a list of groups.
    for row in _pack([len(texts[group[0]]) for group in groups], pad_multiple):
        length = _round_up(len(texts[groups[row[0]][0]]), pad_multiple)
        rows.setdefault(length, []).append([groups[number] for number in row])
    for length, same in rows.items():
        # Batches of equal size need few padding rows in the last batch.
        count = -(-len(same) // max(1, batch_size * pad_multiple // length))
        size = -(-len(same) // count)
        for start in range(0, len(same), size):
            yield _make_batch(same[start : start + size], texts, (size, length))


def _group_by_prefix(texts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Group the texts so that each group needs only one forward pass, over its first text.

    Returns:
        Groups of text indices. Each text of a group is equal to the first one, or a prefix of it.
    """
    groups: list[list[int]] = []
    # In reverse lexicographic order, a text directly follows the texts that it is a prefix of.
    for i in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        if groups and texts[groups[-1][0]][: len(texts[i])] == texts[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _pack(lengths: Sequence[int], pad_multiple: int) -> list[list[int]]:
    """Pack items of the given lengths into rows by best-fit decreasing bin packing.

    The first item of a row determines the row length: the next multiple of `pad_multiple`.

    Returns:
        Indices of the items of each row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # Free positions and index of each row, sorted.
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        position = bisect.bisect_left(room, (lengths[i], 0))
        if position < len(room):
            left, row = room.pop(position)
            rows[row].append(i)
        else:
            left, row = _round_up(lengths[i], pad_multiple), len(rows)
            rows.append([i])
        bisect.insort(room, (left - lengths[i], row))
    return rows


def _make_batch(
    rows: list[list[list[int]]], texts: Sequence[tuple[int, ...]], shape: tuple[int, int]
) -> _Batch:
    """Return the arrays of a batch; positions without a text are padding.

    Args:
        rows: Groups of text indices for each row, as returned by `_group_by_prefix`.
        texts: Token ids of each text.
        shape: (B, T).
    """
    tokens_BT, positions_BT, segments_BT = arrays = np.zeros((3, *shape), np.int32)
    starts: dict[int, int] = {}
    for number, row in enumerate(rows):
        start = 0
        for segment, group in enumerate(row, 1):
            text = texts[group[0]]
            here = (number, slice(start, start + len(text)))
            tokens_BT[here], positions_BT[here] = text, np.arange(len(text))
            segments_BT[here] = segment
            starts |= dict.fromkeys(group, number * shape[1] + start)
            start += len(text)
    return _Batch(arrays, starts)


def _round_up(length: int, pad_multiple: int) -> int:
    return -(-length // pad_multiple) * pad_multiple


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model: Decoder, variables: Any, tokens_BT, positions_BT, segments_BT) -> jax.Array:
    hidden_BTD, _ = model.apply(variables, tokens_BT, positions_BT, segments_BT)
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1])


def _score_targets(
    hidden_ND: jax.Array, head_VD: jax.Array, indices: list[int], targets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability of each target, and whether the target is the most probable token.

    Args:
        hidden_ND: (N, D) final hidden states.
        head_VD: (V, D) weights of the LM head.
        indices: For each prediction, the row of `hidden_ND` that it is made from.
        targets: For each prediction, the id of the actual next token.
    """
    count = len(indices)
    padded = np.zeros((2, _round_up(count, CHUNK_SIZE)), np.int32)
    padded[:, :count] = indices, targets
    chunks = [
        _score_chunk(hidden_ND, head_VD, *padded[:, start : start + CHUNK_SIZE])
        for start in range(0, count, CHUNK_SIZE)
    ]
    log_probability, is_greedy = (
        np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True)
    )
    return log_probability, is_greedy


@jax.jit
def _score_chunk(
    hidden_ND: jax.Array, head_VD: jax.Array, indices_P: jax.Array, targets_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_PV = logits(hidden_ND[indices_P], head_VD)
    target_P = jnp.take_along_axis(logits_PV, targets_P[:, None], axis=-1)[:, 0]
    is_greedy_P = logits_PV.argmax(axis=-1) == targets_P
    return sharding.replicate((target_P - jax.nn.logsumexp(logits_PV, axis=-1), is_greedy_P))
