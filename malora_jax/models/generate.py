"""Generation with a key/value cache, batched, compiled once for each prompt length bucket.

Prompts are padded on the left, so that all rows of a batch stand at the same place of the cache.
Texts that end an answer are looked for on the host, every few tokens: a token may hold part of one.

Dimension letters: B batch, T prompt places, M most new tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import struct

from malora_jax import errors
from malora_jax.models.decoder import Cache, Decoder, empty_cache, head, logits
from malora_jax.models.sampling import Draws, check_sampling, keys_of, sample

# New tokens between two looks at the texts.
STRIDE = 16
# What the room for new tokens is a multiple of; generation is compiled once for each room.
ROOM = 64


class TextDecoder(Protocol):
    """What generation needs of a tokenizer."""

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """The text of some tokens, without special tokens."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The token written so, or None."""
        ...


class _State(struct.PyTreeNode):
    """How far a batch is.

    Attributes:
        step: () int32, tokens written to each row.
        token: (B,) int32, the next ones.
        done: (B,) bool, rows to which only end tokens are written.
        new: (B, M) int32, what is written.
        length: (B,) int32, tokens of the prompts.
        cache: of the prompts and what is written.
    """

    step: jax.Array
    token: jax.Array
    done: jax.Array
    new: jax.Array
    length: jax.Array
    cache: Cache


class Generator:
    """Answers prompts with a model.

    Attributes:
        model: the decoder.
        end_id: the token after which an answer is over; it is not part of the answer.
        batch_size: B; the last batch is filled up with empty rows.
        max_new_tokens: the most new tokens; M is the limit of a call, rounded up to a multiple of
            ROOM, if that is less.
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
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        limit: int | None = None,
        *,
        draws: Draws | None = None,
        over: Callable[[list[int]], bool] | None = None,
        description: str | None = None,
    ) -> list[list[int]]:
        """The continuation of each prompt.

        Args:
            variables: the model's collections.
            prompts: token ids; none is empty.
            limit: new tokens at most, if fewer than `max_new_tokens`.
            draws: how tokens are drawn; None = each is the most probable one.
            over: what says that an answer is over, beside the end token. It is asked after every
                STRIDE tokens, so the answer may go on for a few.
            description: what the progress bar says; None = there is none.

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
        with tqdm.tqdm(
            total=len(prompts),
            desc=description,
            unit='answer',
            dynamic_ncols=True,
            disable=description is None,
        ) as bar:
            for start in range(0, len(prompts), self.batch_size):
                indices = by_length[start : start + self.batch_size]
                batch = [prompts[i] for i in indices]
                # Rows without a prompt get any key.
                rows = np.resize(indices, self.batch_size)
                part = None if draws is None else draws.replace(keys=draws.keys[rows])
                found = self._answer_batch(variables, batch, most, part, over)
                for i, answer in zip(indices, found, strict=True):
                    answers[i] = answer
                bar.update(len(indices))
        return answers

    def texts(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        tokenizer: TextDecoder,
        *,
        limit: int | None = None,
        stop: Sequence[str] = (),
        samples: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        description: str = '',
    ) -> list[list[str]]:
        """Texts that continue each prompt.

        What is drawn depends on the seed, the number of the prompt, that of the sample and the
        place in the text; not on the batch that the prompt is in, nor on how many samples there
        are.

        Args:
            variables: the model's collections.
            prompts: token ids; none is empty.
            tokenizer: of the model.
            limit: new tokens at most, if fewer than `max_new_tokens`.
            stop: a text ends before the first of these. One that is a special token ends it too.
            samples: texts for each prompt.
            temperature: what logits are divided by before a token is drawn; 0 = each token is the
                most probable one.
            top_p: see `Draws`.
            seed: of what is drawn.
            description: what the progress bar says.

        Returns:
            The texts of each prompt, in the order of the prompts.

        Raises:
            UserError: as for `__call__`, or a value out of range.
        """
        check_sampling(samples, temperature, top_p)
        ending = _Ending(tokenizer, tuple(stop))
        draws = None
        if temperature > 0:
            keys = keys_of(seed, len(prompts), samples)
            draws = Draws(keys, jnp.float32(temperature), jnp.float32(top_p))
        answers = self(
            variables,
            [prompt for prompt in prompts for _ in range(samples)],
            limit,
            draws=draws,
            over=ending.is_met if stop else None,
            description=description,
        )
        texts = [ending.text(answer) for answer in answers]
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]

    def _answer_batch(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        most: int,
        draws: Draws | None,
        over: Callable[[list[int]], bool] | None,
    ) -> list[list[int]]:
        """Answers of at most B prompts."""
        end_id, until = jnp.int32(self.end_id), 0
        room = min(self.max_new_tokens, -(-most // ROOM) * ROOM)
        state = _start(self.model, room, variables, *self._pad(prompts), draws, end_id)
        while True:
            until = most if over is None else min(until + STRIDE, most)
            state = _extend(self.model, variables, state, draws, end_id, jnp.int32(until))
            # Copies, since the next call takes the state's memory.
            new_BS, done_B = np.array(state.new)[:, : int(state.step)], np.array(state.done)
            answers = [row[row != self.end_id].tolist() for row in new_BS[: len(prompts)]]
            if over is not None:
                done_B[: len(prompts)] |= [over(answer) for answer in answers]
            if until == most or done_B.all():
                return answers
            state = state.replace(done=jnp.asarray(done_B))

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        longest = max(len(prompt) for prompt in prompts)
        places = -(-longest // self.bucket) * self.bucket
        tokens_BT = np.zeros((self.batch_size, places), np.int32)
        segments_BT = np.zeros_like(tokens_BT)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, places - len(prompt) :] = prompt
            segments_BT[row, places - len(prompt) :] = 1
        return tokens_BT, segments_BT


@dataclasses.dataclass
class _Ending:
    """Where a text ends before its end token."""

    tokenizer: TextDecoder
    stop: tuple[str, ...]

    def __post_init__(self):
        if '' in self.stop:
            raise errors.out_of_range('stop', self.stop, 'texts that are not empty')
        # Special tokens are not in the text.
        self.ids = {self.tokenizer.token_to_id(text) for text in self.stop} - {None}

    def is_met(self, ids: list[int]) -> bool:
        """Whether the text has come to its end."""
        text = self.tokenizer.decode(ids, continues=True)
        return not self.ids.isdisjoint(ids) or any(stop in text for stop in self.stop)

    def text(self, ids: list[int]) -> str:
        """The text up to its end."""
        count = next((i for i, token in enumerate(ids) if token in self.ids), len(ids))
        text = self.tokenizer.decode(ids[:count], continues=True)
        return text[: min((text.index(stop) for stop in self.stop if stop in text), default=None)]


def _next_token(
    model: Decoder,
    variables: Any,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    cache: Cache,
    draws: Draws | None,
    place: jax.Array,
) -> tuple[jax.Array, Cache]:
    hidden_BTD, cache = cast(
        tuple[jax.Array, Cache],
        model.apply(variables, tokens_BT, positions_BT, segments_BT, cache=cache),
    )
    logits_BV = logits(hidden_BTD[:, -1], head(model.config, variables['params']))
    if draws is None:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), cache
    return sample(logits_BV, draws, place), cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(
    model: Decoder,
    max_new_tokens: int,
    variables: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    draws: Draws | None,
    end_id: jax.Array,
) -> _State:
    """Reads the prompts."""
    B, T = tokens_BT.shape
    length_B = segments_BT.sum(axis=1)
    positions_BT = jnp.maximum(jnp.arange(T)[None] - (T - length_B)[:, None], 0)
    cache, step = empty_cache(model.config, B, T + max_new_tokens), jnp.int32(0)
    token_B, cache = _next_token(
        model, variables, tokens_BT, positions_BT, segments_BT, cache, draws, step
    )
    # Rows without a prompt are done before they begin.
    done_B = (token_B == end_id) | (length_B == 0)
    new_BM = jnp.zeros((B, max_new_tokens), jnp.int32)
    return _State(step=step, token=token_B, done=done_B, new=new_BM, length=length_B, cache=cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _extend(
    model: Decoder,
    variables: Any,
    state: _State,
    draws: Draws | None,
    end_id: jax.Array,
    until: jax.Array,
) -> _State:
    """Writes tokens until there are `until`, or all rows are done."""

    def unfinished(state: _State) -> jax.Array:
        return (state.step < until) & ~state.done.all()

    def write(state: _State) -> _State:
        new_BM = state.new.at[:, state.step].set(jnp.where(state.done, end_id, state.token))
        ones_B1 = jnp.ones_like(state.token)[:, None]
        positions_B1 = (state.length + state.step)[:, None]
        token_B, cache = _next_token(
            model,
            variables,
            state.token[:, None],
            positions_B1,
            ones_B1,
            state.cache,
            draws,
            state.step + 1,
        )
        return state.replace(
            step=state.step + 1,
            token=token_B,
            done=state.done | (token_B == end_id),
            new=new_BM,
            cache=cache,
        )

    return jax.lax.while_loop(unfinished, write, state)
