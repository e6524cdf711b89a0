"""Log-likelihoods of texts: how probable a model finds a continuation of a context.

Texts are packed as in training, several a row and each a segment of its own. One that another
begins with is not computed twice: options of one token, such as letters, cost their question once.
The head runs at the positions that predict a token of a continuation and nowhere else.

Dimension letters: B rows of a batch, T positions of a row, N = B · T, D model, V vocabulary, P
predictions that go through the head together.
"""

import bisect
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from malora_jax.distributed import hosts, rules
from malora_jax.errors import UserError
from malora_jax.models import Decoder
from malora_jax.models.decoder import head, logits

CHUNK = 256  # P: large enough for full speed, small in memory.

# Token ids of a context and of what may follow it; neither is empty.
Request = tuple[Sequence[int], Sequence[int]]


class Likelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        log_probability: in nats, summed over its tokens.
        tokens: how many these are.
        greedy: whether each is the most probable one at its place.
    """

    log_probability: float
    tokens: int
    greedy: bool


class _Batch(NamedTuple):
    """Packed texts.

    Attributes:
        arrays: tokens, positions and segments, (3, B, T) int32.
        starts: of each text, by its number, the place in (N,).
    """

    arrays: np.ndarray
    starts: dict[int, int]


def log_likelihoods(
    model: Decoder,
    variables: Any,
    requests: Sequence[Request],
    *,
    batch_size: int,
    bucket: int,
    description: str | None = None,
) -> list[Likelihood]:
    """The log-likelihood of each continuation, given its context.

    A request may have one token more than the model has positions, as the last one is only
    predicted. Where it has more, its context is cut on the left, as in EleutherAI's harness.

    Args:
        model: the decoder.
        variables: its collections.
        requests: contexts and continuations, in any order.
        batch_size: rows of `bucket` positions that are computed together; of longer rows, as many
            as have no more positions.
        bucket: T is a multiple of this; the decoder is compiled once for each T that occurs. A few
            times the usual length of a request leaves little padding.
        description: what the progress bar says; None = there is none.

    Returns:
        One for each request; up to rounding, whatever else is computed beside it.

    Raises:
        UserError: a context or a continuation is empty, or a continuation has more tokens than the
            model has positions.
    """
    texts = [_text(i, request, model.config.context) for i, request in enumerate(requests)]
    sums, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
    head_VD = head(model.config, variables['params'])
    with tqdm.tqdm(
        total=len(requests),
        desc=description,
        unit='text',
        dynamic_ncols=True,
        disable=description is None or not hosts.is_first(),
    ) as bar:
        for batch in _batches(texts, batch_size, bucket):
            places: list[int] = []
            targets: list[int] = []
            owners: list[int] = []
            for i, start in batch.starts.items():
                (_, continuation), end = requests[i], start + len(texts[i])
                places += range(end - len(continuation), end)
                targets += continuation
                owners += [i] * len(continuation)
            hidden_ND = _hidden(model, variables, *batch.arrays)
            log_probability, right = _predictions(hidden_ND, head_VD, places, targets)
            np.add.at(sums, owners, log_probability)
            np.logical_and.at(greedy, owners, right)
            bar.update(len(batch.starts))
    return [
        Likelihood(float(total), len(continuation), bool(right))
        for (_, continuation), total, right in zip(requests, sums, greedy, strict=True)
    ]


def rolling_log_likelihoods(
    model: Decoder,
    variables: Any,
    texts: Sequence[Sequence[int]],
    prefix_id: int,
    *,
    batch_size: int,
    bucket: int,
    description: str | None = None,
) -> list[Likelihood]:
    """The log-likelihood of each whole text, which may be longer than the model's context.

    Args:
        model: the decoder.
        variables: its collections.
        texts: token ids; see `windows` for how they are cut.
        prefix_id: the token that the first one is predicted from.
        batch_size: see `log_likelihoods`.
        bucket: see there.
        description: what the progress bar says.
    """
    parts = [windows(text, prefix_id, model.config.context) for text in texts]
    scores = iter(
        log_likelihoods(
            model,
            variables,
            [part for text in parts for part in text],
            batch_size=batch_size,
            bucket=bucket,
            description=description,
        )
    )
    return [_joined([next(scores) for _ in text]) for text in parts]


def _joined(parts: Sequence[Likelihood]) -> Likelihood:
    return Likelihood(
        sum(part.log_probability for part in parts),
        sum(part.tokens for part in parts),
        all(part.greedy for part in parts),
    )


def windows(text: Sequence[int], prefix_id: int, length: int) -> list[Request]:
    """Cuts a text into requests that predict each of its tokens once.

    As in EleutherAI's harness: windows of `length` inputs that do not overlap, but for the last,
    which goes back as far as it can.
    """
    inputs = [prefix_id, *text]
    cut: list[Request] = []
    for start in range(0, len(text), length):
        end = min(start + length, len(text))
        cut.append((inputs[max(0, end - length) : start + 1], text[start:end]))
    return cut


def _text(number: int, request: Request, positions: int) -> tuple[int, ...]:
    """What the decoder is given: all but the last token, as much of it as there are positions."""
    context, continuation = request
    if not len(context) or not len(continuation):
        empty = 'continuation' if len(context) else 'context'
        raise UserError(f'Request {number} has an empty {empty}; each must have a token.')
    if len(continuation) > positions:
        raise UserError(
            f'Request {number} has a continuation of {len(continuation)} tokens; at most '
            f'{positions} fit into the context of the model.'
        )
    return (*context, *continuation)[:-1][-positions:]


def _batches(texts: Sequence[tuple[int, ...]], batch_size: int, bucket: int) -> Iterator[_Batch]:
    """All texts, the longest first."""
    groups = _share(texts)
    rows: dict[int, list[list[list[int]]]] = {}  # By length; a row is a list of groups.
    for row in _pack([len(texts[group[0]]) for group in groups], bucket):
        length = _round_up(len(texts[groups[row[0]][0]]), bucket)
        rows.setdefault(length, []).append([groups[number] for number in row])
    for length, same in rows.items():
        # Batches of equal size: little of the last one is empty.
        count = -(-len(same) // max(1, batch_size * bucket // length))
        size = -(-len(same) // count)
        for start in range(0, len(same), size):
            yield _lay_out(same[start : start + size], texts, (size, length))


def _share(texts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Groups of texts, by number; the first of a group begins with each of the others."""
    groups: list[list[int]] = []
    # Texts that begin with another one come right after it in this order, and before it backwards.
    for i in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        if groups and texts[groups[-1][0]][: len(texts[i])] == texts[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _pack(lengths: Sequence[int], bucket: int) -> list[list[int]]:
    """Rows of what has these lengths, by number: best fit, the longest first.

    The first of a row decides its length, the next multiple of `bucket`.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # What a row has left, and its number; sorted.
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        place = bisect.bisect_left(room, (lengths[i], 0))
        if place < len(room):
            left, row = room.pop(place)
            rows[row].append(i)
        else:
            left, row = _round_up(lengths[i], bucket), len(rows)
            rows.append([i])
        bisect.insort(room, (left - lengths[i], row))
    return rows


def _lay_out(
    rows: list[list[list[int]]], texts: Sequence[tuple[int, ...]], shape: tuple[int, int]
) -> _Batch:
    """A batch of rows of groups; what is left of it is padding."""
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


def _round_up(length: int, bucket: int) -> int:
    return -(-length // bucket) * bucket


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model: Decoder, variables: Any, tokens_BT, positions_BT, segments_BT) -> jax.Array:
    hidden_BTD, _ = model.apply(variables, tokens_BT, positions_BT, segments_BT)
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1])


def _predictions(
    hidden_ND: jax.Array, head_VD: jax.Array, places: list[int], targets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each target at its place, and whether it is the most probable token."""
    count = len(places)
    padded = np.zeros((2, _round_up(count, CHUNK)), np.int32)
    padded[:, :count] = places, targets
    chunks = [
        _predict(hidden_ND, head_VD, *padded[:, start : start + CHUNK])
        for start in range(0, count, CHUNK)
    ]
    log_probability, right = (np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True))
    return log_probability, right


@jax.jit
def _predict(
    hidden_ND: jax.Array, head_VD: jax.Array, places_P: jax.Array, targets_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_PV = logits(hidden_ND[places_P], head_VD)
    target_P = jnp.take_along_axis(logits_PV, targets_P[:, None], axis=-1)[:, 0]
    right_P = logits_PV.argmax(axis=-1) == targets_P
    return rules.replicate((target_P - jax.nn.logsumexp(logits_PV, axis=-1), right_P))
