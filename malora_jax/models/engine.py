"""Continuous batching: texts are written side by side, and a new one begins where one ends.

The engine knows tokens, not texts; who asks it may end a text early by what it says.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.distributed import rules
from malora_jax.models import rows as rows_lib
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder
from malora_jax.models.sampling import Draws

# Tokens that are chosen in each row between two looks at them.
STRIDE = 4
# What places are a multiple of, and prompts are filled up to; then it doubles: each is compiled.
_LEAST_PLACES = 64
_LEAST_PROMPT = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to be written.

    Attributes:
        prompt: token ids, at least one.
        limit: the most new tokens, at least 1.
        temperature, top_k, top_p: as in `Draws`, for one row.
        key: random key of what is drawn; None without heat.
        alternatives: whether the most probable tokens are wanted beside each that is chosen.
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
    """A token that was chosen.

    Attributes:
        id: the token.
        log_probability: in nats, whatever the temperature.
        alternatives: the most probable tokens with theirs, if they are wanted.
    """

    id: int
    log_probability: float
    alternatives: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class News:
    """What became of a request since the last look.

    Attributes:
        number: of the request.
        tokens: new ones; an end token is not among them.
        finish: why nothing more comes: 'stop' for an end token, 'length' for the limit; else None.
    """

    number: int
    tokens: list[Token]
    finish: str | None


class RequestError(Exception):
    """A request could not be begun; its number is the error's argument, its reason the cause.

    The engine has forgotten the request and continues with the others.
    """

    @property
    def number(self) -> int:
        """Number of the request."""
        return self.args[0]


class Engine:
    """Writes the texts of requests, as many at a time as there are rows.

    Not for several threads at once.

    Errors: if a request cannot be begun, `step` raises `RequestError`, and the other texts continue
    with the next step. Any other error of `step` belongs to the compiled step of all rows, or has
    destroyed their state on the device: only `reset` helps, after which requests can be submitted
    again.
    """

    def __init__(self, model: Decoder, variables: Any, ends: Sequence[int], rows: int):
        """Makes room for texts.

        Args:
            model: the decoder.
            variables: its collections.
            ends: tokens after which a text is over.
            rows: how many texts are written at a time.
        """
        self.model = model
        self._variables = variables
        self._ends = np.array(ends, np.int32)
        self._count = rows
        # Faster there, for arrays that are whole.
        apart = jax.default_backend() == 'cpu' and not rules.is_mesh_set()
        self._layers = rows_lib.by_layer(model.config, variables) if apart else None
        self._rows: rows_lib.Rows | None = None
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._at: dict[int, int] = {}  # By row, the number of the request that is written there.
        self._begun: dict[int, rows_lib.Chosen] = {}  # By row, a first token that is not told yet.
        self._cancelled: list[int] = []  # Rows that the device still writes.
        self._next = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        return not self._waiting and not self._at

    def submit(self, request: Request) -> int:
        """Takes a request; it waits until there is a row for it.

        Returns:
            Its number.

        Raises:
            UserError: prompt and answer might not fit into the model's context.
        """
        check_room(self.model.config, len(request.prompt), request.limit)
        self._next += 1
        self._waiting.append((self._next, request))
        return self._next

    def cancel(self, number: int) -> None:
        """Forgets a request, wherever it stands; one that is finished is not there any more."""
        self._waiting = collections.deque(each for each in self._waiting if each[0] != number)
        for row in [row for row, other in self._at.items() if other == number]:
            del self._at[row]
            self._begun.pop(row, None)
            self._cancelled.append(row)

    def reset(self) -> None:
        """Forget all requests, and the state on the device."""
        self._rows = None
        self._waiting.clear()
        self._at, self._begun, self._cancelled = {}, {}, []

    def step(self) -> list[News]:
        """Begins what there are rows for, and writes some tokens of everything that is begun.

        Raises:
            RequestError: A request could not be begun.
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
            except Exception as error:  # Of any kind: the device may lack memory.
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
        """Whether a failed program has consumed the memory of the rows."""
        return any(array.is_deleted() for array in jax.tree.leaves(self._rows))

    def _begin(self, row: int, request: Request) -> rows_lib.Chosen:
        length = len(request.prompt)
        padded = _doubled(_LEAST_PROMPT, length)
        places = _doubled(_LEAST_PLACES, max(padded, length + request.limit))
        # With nothing else written, the rows need be no longer than this text.
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
    """Check that a prompt and an answer, both in tokens, fit into the model's context.

    Raises:
        UserError: They do not.
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
    """The first of least, 2 · least, 4 · least and so on that is enough."""
    return least << max(0, (-(-needed // least) - 1).bit_length())
