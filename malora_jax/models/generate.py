"""Greedy generation with a key/value cache, batched, compiled once for each prompt length bucket.

Prompts are padded on the left, so that all rows of a batch stand at the same place of the cache.

Dimension letters: B batch, T prompt places, M most new tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.models.decoder import Cache, Decoder, empty_cache, head, logits


class Generator:
    """Answers prompts with a model.

    Attributes:
        model: the decoder.
        end_id: the token after which an answer is over; it is not part of the answer.
        batch_size: B; the last batch is filled up with empty rows.
        max_new_tokens: M.
        bucket: T is the longest prompt's length, rounded up to a multiple of this.
    """

    def __init__(
        self, model: Decoder, end_id: int, *, batch_size: int, max_new_tokens: int, bucket: int
    ):
        self.model = model
        self.end_id = end_id
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.bucket = bucket

    def __call__(
        self, variables: Any, prompts: Sequence[Sequence[int]], limit: int | None = None
    ) -> list[list[int]]:
        """The most probable continuation, token by token, of each prompt.

        Args:
            variables: the model's collections.
            prompts: token ids; none is empty.
            limit: new tokens at most, if fewer than `max_new_tokens`.

        Returns:
            Token ids of each answer, in the order of the prompts.

        Raises:
            UserError: a prompt and its answer might not fit into the model's context.
        """
        most = self.max_new_tokens if limit is None else min(limit, self.max_new_tokens)
        config, longest = self.model.config, max(map(len, prompts), default=0)
        if longest + most > config.context:
            raise errors.UserError(
                f'A prompt of {longest} tokens and an answer of {most} do not fit into the context '
                f'of {config.name}, {config.context}.'
            )
        answers: list[list[int]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(prompts), self.batch_size):
            indices = by_length[start : start + self.batch_size]
            tokens_BT, segments_BT = self._pad([prompts[i] for i in indices])
            new = _generate(
                self.model,
                self.max_new_tokens,
                variables,
                tokens_BT,
                segments_BT,
                jnp.int32(self.end_id),
                jnp.int32(most),
            )
            new_BM, count_B = jax.device_get(new)
            for row, i in enumerate(indices):
                answers[i] = new_BM[row, : count_B[row]].tolist()
        return answers

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        longest = max(len(prompt) for prompt in prompts)
        places = -(-longest // self.bucket) * self.bucket
        tokens_BT = np.zeros((self.batch_size, places), np.int32)
        segments_BT = np.zeros_like(tokens_BT)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, places - len(prompt) :] = prompt
            segments_BT[row, places - len(prompt) :] = 1
        return tokens_BT, segments_BT


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Decoder,
    max_new_tokens: int,
    variables: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    end_id: jax.Array,
    limit: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """New tokens (B, M) and how many of them are the answer (B,)."""
    B, T = tokens_BT.shape
    head_VD = head(model.config, variables['params'])
    length_B = segments_BT.sum(axis=1)
    positions_BT = jnp.maximum(jnp.arange(T)[None] - (T - length_B)[:, None], 0)

    def next_token(tokens, positions, segments, cache: Cache) -> tuple[jax.Array, Cache]:
        hidden, cache = cast(
            tuple[jax.Array, Cache],
            model.apply(variables, tokens, positions, segments, cache=cache),
        )
        return jnp.argmax(logits(hidden[:, -1], head_VD), axis=-1).astype(jnp.int32), cache

    cache = empty_cache(model.config, B, T + max_new_tokens)
    token_B, cache = next_token(tokens_BT, positions_BT, segments_BT, cache)
    # Rows without a prompt are done before they begin.
    done_B = (token_B == end_id) | (length_B == 0)
    start = (jnp.int32(0), token_B, done_B, jnp.zeros((B, max_new_tokens), jnp.int32), cache)

    def unfinished(carry) -> jax.Array:
        i, _, done_B, _, _ = carry
        return (i < limit) & ~done_B.all()

    def extend(carry):
        i, token_B, done_B, new_BM, cache = carry
        new_BM = new_BM.at[:, i].set(jnp.where(done_B, end_id, token_B))
        token_B, cache = next_token(
            token_B[:, None], (length_B + i)[:, None], jnp.ones((B, 1), jnp.int32), cache
        )
        return i + 1, token_B, done_B | (token_B == end_id), new_BM, cache

    steps, _, _, new_BM, _ = jax.lax.while_loop(unfinished, extend, start)
    written_BM = (jnp.arange(max_new_tokens) < steps)[None] & (new_BM != end_id)
    return new_BM, written_BM.sum(axis=1)
