"""Continuous batching: as soon as a request finishes, a waiting one takes its slot.

The engine works on tokens. It knows end tokens but no stop strings: a caller that finds one in the
text cancels the request.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.distributed import sharding
from malora_jax.models import rows as rows_lib
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder
from malora_jax.models.sampling import Draws

# Maximum number of decode steps in one call of `Engine.step`, before tokens are copied to the host.
STRIDE = 4
# Smallest KV cache length and smallest padded prompt length. Larger ones are these times a power of
# two, which limits the number of shapes to compile.
_LEAST_PLACES = 64
_LEAST_PROMPT = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue, with its sampling settings.

    Attributes:
        prompt: Token ids, at least one.
        limit: Maximum number of new tokens, at least 1.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_k: Number of most probable tokens to sample from; 0 for all.
        top_p: Probability mass of nucleus sampling; 1 for all tokens.
        key: PRNG key for sampling; None if the temperature is 0.
        alternatives: Whether to return the log-probabilities of the `rows.ALTERNATIVES` most
            probable tokens with each new token.
    """

    prompt: Sequence[int]
    limit: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    key: jax.Array | None = None
    alternatives: bool = False


@dataclasses.dataclass(frozen=True)
class Token:
    """A generated token with its log-probability.

    Attributes:
        id: Token id.
        log_probability: Log-probability of the token in nats, at temperature 1 and without top-k or
            top-p.
        alternatives: Ids and log-probabilities of the most probable tokens, most probable first;
            empty unless the request asks for them.
    """

    id: int
    log_probability: float
    alternatives: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class News:
    """Output of a request in one step of the engine.

    Attributes:
        number: Number of the request.
        tokens: New tokens, without the end token.
        finish: Reason why the request has finished: 'stop' for an end token, 'length' for the limit
            on new tokens; None while it continues.
    """

    number: int
    tokens: list[Token]
    finish: str | None


class RequestError(Exception):
    """Error of a request that could not be started; `__cause__` holds the reason.

    The engine has dropped the request and continues with the others.
    """

    @property
    def number(self) -> int:
        """Number of the request."""
        return self.args[0]


class Engine:
    """Continuous batching of requests over a fixed number of slots (rows of the KV cache).

    The engine is not thread-safe.

    If a request cannot be started, `step` raises `RequestError`, and the other requests continue
    with the next step. Any other error of `step` affects all slots: the decode step failed, or the
    KV cache on the device is lost. Then call `reset`, and submit requests again.

    Example:
        Answer one prompt greedily with at most 20 tokens:

            engine = Engine(model, variables, ends=[tokenizer.eos_id], rows=8)
            engine.submit(Request(tokenizer.encode('Hello'), limit=20))
            tokens = []
            while not engine.is_idle:
                for news in engine.step():
                    tokens += [token.id for token in news.tokens]
    """

    def __init__(self, model: Decoder, variables: Any, ends: Sequence[int], rows: int):
        """Create an engine without requests; the KV cache is allocated with the first one.

        Args:
            model: Decoder.
            variables: Collections of the decoder.
            ends: Ids of end tokens.
            rows: Number of slots, that is, of requests decoded at a time.
        """
        self.model = model
        self._variables = variables
        self._ends = np.array(ends, np.int32)
        self._count = rows
        # One array per layer is faster on CPU: see `rows`. It needs arrays that are not sharded.
        apart = jax.default_backend() == 'cpu' and not sharding.is_mesh_set()
        self._layers = rows_lib.by_layer(model.config, variables) if apart else None
        self._rows: rows_lib.Rows | None = None
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._at: dict[int, int] = {}  # Number of the request in each occupied slot.
        self._begun: dict[int, rows_lib.Chosen] = {}  # By slot, first tokens not returned yet.
        self._cancelled: list[int] = []  # Slots still active on the device.
        self._next = 0

    @property
    def is_idle(self) -> bool:
        """True if no request is waiting or running."""
        return not self._waiting and not self._at

    def submit(self, request: Request) -> int:
        """Add a request to the queue; it waits for a free slot.

        Returns:
            Number of the request.

        Raises:
            UserError: The prompt and the maximum number of new tokens exceed the model's context.
        """
        check_room(self.model.config, len(request.prompt), request.limit)
        self._next += 1
        self._waiting.append((self._next, request))
        return self._next

    def cancel(self, number: int) -> None:
        """Drop a waiting or running request; a number that has finished is ignored."""
        self._waiting = collections.deque(each for each in self._waiting if each[0] != number)
        for row in [row for row, other in self._at.items() if other == number]:
            del self._at[row]
            self._begun.pop(row, None)
            self._cancelled.append(row)

    def reset(self) -> None:
        """Drop all requests, and the KV cache on the device."""
        self._rows = None
        self._waiting.clear()
        self._at, self._begun, self._cancelled = {}, {}, []

    def step(self) -> list[News]:
        """Prefill waiting requests into free slots, then run up to `STRIDE` decode steps.

        Returns:
            New tokens of each running request, including those that finished.

        Raises:
            RequestError: A request could not be started.
        """
        if self._rows is not None:
            for row in self._cancelled:
                self._rows = self._rows.replace(writes=self._rows.writes.at[row].set(False))
        self._cancelled = []
        while self._waiting and len(self._at) < self._count:
            row = next(row for row in range(self._count) if row not in self._at)
            number, request = self._waiting.popleft()
            try:
                self._begun[row] = self._begin(row, request)
            except Exception as error:  # Such as XlaRuntimeError, if the device lacks memory.
                if self._is_lost():
                    raise
                raise RequestError(number) from error
            self._at[row] = number
        if not self._at or self._rows is None:
            return []
        rows, chosen, count_B = rows_lib.write(
            self.model, STRIDE, self._variables, self._layers, self._rows, self._ends
        )
        self._rows = rows
        begun, self._begun = self._begun, {}
        begun, chosen, count_B, writes_B, tells_B = jax.device_get(
            (begun, chosen, count_B, rows.writes, rows.tells)
        )
        news = []
        for row, number in list(self._at.items()):
            tokens = [_token(begun[row], (), tells_B[row])] if row in begun else []
            tokens += [_token(chosen, (row, i), tells_B[row]) for i in range(count_B[row])]
            finish = None
            if not writes_B[row]:
                del self._at[row]
                finish = 'stop' if tokens and tokens[-1].id in self._ends else 'length'
            news.append(News(number, tokens[:-1] if finish == 'stop' else tokens, finish))
        return news

    def _is_lost(self) -> bool:
        """Return whether a failed program has consumed the KV cache, which was donated to it."""
        return any(array.is_deleted() for array in jax.tree.leaves(self._rows))

    def _begin(self, row: int, request: Request) -> rows_lib.Chosen:
        length = len(request.prompt)
        padded = _doubled(_LEAST_PROMPT, length)
        places = _doubled(_LEAST_PLACES, max(padded, length + request.limit))
        # If no other request is running, reallocate the KV cache at the length of this one.
        if self._rows is None or (not self._at and self._rows.places != places):
            apart = self._layers is not None
            self._rows = rows_lib.empty_rows(self.model.config, self._count, places, apart)
        elif self._rows.places < places:
            self._rows = rows_lib.grown(self._rows, places)
        tokens_T = np.zeros(padded, np.int32)
        tokens_T[:length] = request.prompt
        draws = Draws(
            jax.random.key(0) if request.key is None else request.key,
            jnp.float32(request.temperature),
            jnp.int32(request.top_k),
            jnp.float32(request.top_p),
        )
        order = rows_lib.Order(
            jnp.int32(row), jnp.int32(request.limit), jnp.bool_(request.alternatives), draws
        )
        self._rows, chosen = rows_lib.read(
            self.model,
            self._variables,
            self._rows,
            jnp.asarray(tokens_T),
            np.int32(length),
            order,
            self._ends,
        )
        return chosen


def check_room(config: ModelConfig, prompt: int, limit: int) -> None:
    """Check that a prompt and its answer fit into the model's context.

    Args:
        config: Configuration of the model.
        prompt: Length of the prompt in tokens.
        limit: Maximum number of new tokens.

    Raises:
        UserError: The sum exceeds the context length.
    """
    if prompt + limit > config.context:
        raise errors.UserError(
            f'A prompt of {prompt} tokens and an answer of {limit} do not fit into the context '
            f'of {config.name}, {config.context}.'
        )


def _token(chosen: rows_lib.Chosen, at: tuple[int, ...], tells: bool) -> Token:
    others = zip(
        chosen.others[at].tolist(), chosen.others_log_probability[at].tolist(), strict=True
    )
    return Token(
        int(chosen.token[at]), float(chosen.log_probability[at]), list(others) if tells else []
    )


def _doubled(least: int, needed: int) -> int:
    """Return the smallest of `least`, 2 · `least`, 4 · `least`, … that is at least `needed`."""
    return least << max(0, (-(-needed // least) - 1).bit_length())
