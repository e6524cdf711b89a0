"""Continuous batching: as soon as a request finishes, a waiting one takes its slot.

The engine works on tokens. It knows end tokens but no stop strings: a caller that finds a stop
string in the text cancels the request.
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
from malora_jax.models import decoding
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder
from malora_jax.models.sampling import SamplingParams

# Maximum number of decode steps in one call of `Engine.step`, before tokens are copied to the host.
STEPS_PER_CALL = 4
# Smallest KV cache length and smallest padded prompt length. Larger ones are these times a power of
# two, which limits the number of shapes to compile.
_MIN_CACHE_LENGTH = 64
_MIN_PROMPT_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue, with its sampling settings.

    Attributes:
        prompt: Token ids, at least one.
        max_new_tokens: Maximum number of new tokens, at least 1.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_k: Number of most probable tokens to sample from; 0 for all.
        top_p: Probability mass of nucleus sampling; 1 for all tokens.
        key: PRNG key for sampling; None if the temperature is 0.
        wants_logprobs: Whether to return, with each new token, the log-probabilities of the
            `decoding.NUM_TOP_LOGPROBS` most probable tokens.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    key: jax.Array | None = None
    wants_logprobs: bool = False


@dataclasses.dataclass(frozen=True)
class Token:
    """A generated token with its log-probability.

    Attributes:
        id: Token id.
        log_probability: Log-probability of the token in nats, at temperature 1 and without top-k or
            top-p.
        top_logprobs: Ids and log-probabilities of the most probable tokens, most probable first;
            empty unless the request asks for them.
    """

    id: int
    log_probability: float
    top_logprobs: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """Output of a request in one step of the engine.

    Attributes:
        request_id: Id of the request, as returned by `Engine.submit`.
        tokens: New tokens, without the end token.
        finish_reason: Reason why the request has finished: 'stop' for an end token, 'length' for
            the limit on new tokens; None while it continues.
    """

    request_id: int
    tokens: list[Token]
    finish_reason: str | None


class RequestError(Exception):
    """Error of a request that could not be started; `__cause__` holds the reason.

    The engine has dropped the request and continues with the others.
    """

    @property
    def request_id(self) -> int:
        """Id of the request, as returned by `Engine.submit`."""
        return self.args[0]


class Engine:
    """Continuous batching of requests over a fixed number of slots (rows of the KV cache).

    The engine is not thread-safe.

    If a request cannot be started, `step` raises `RequestError`, and the other requests continue
    with the next step. Any other error of `step` affects all slots: the decode step failed, or the
    KV cache on the device is lost. Then call `reset`, and submit requests again.

    Example:
        Answer one prompt greedily with at most 20 tokens:

            engine = Engine(model, variables, end_ids=[tokenizer.eos_id], num_slots=8)
            engine.submit(GenerationRequest(tokenizer.encode('Hello'), max_new_tokens=20))
            tokens = []
            while not engine.is_idle:
                for output in engine.step():
                    tokens += [token.id for token in output.tokens]
    """

    def __init__(self, model: Decoder, variables: Any, end_ids: Sequence[int], num_slots: int):
        """Create an engine without requests; the KV cache is allocated with the first one.

        Args:
            model: Decoder.
            variables: Collections of the decoder.
            end_ids: Ids of end tokens.
            num_slots: Number of slots, that is, of requests decoded at a time.
        """
        self.model = model
        self._variables = variables
        self._end_ids = np.array(end_ids, np.int32)
        self._num_slots = num_slots
        # On CPU, one array per layer is faster: see `decoding`. It needs arrays that are not
        # sharded.
        per_layer = jax.default_backend() == 'cpu' and not sharding.is_mesh_set()
        self._layers = decoding.unstack_layers(model.config, variables) if per_layer else None
        self._state: decoding.DecodeState | None = None
        self._waiting: collections.deque[tuple[int, GenerationRequest]] = collections.deque()
        self._id_by_slot: dict[int, int] = {}  # Request id in each occupied slot.
        # First tokens, sampled by `prefill` and not returned yet, by slot.
        self._first_tokens: dict[int, decoding.SampledTokens] = {}
        # Slots of cancelled requests that are still active on the device.
        self._cancelled: list[int] = []
        self._last_id = 0

    @property
    def is_idle(self) -> bool:
        """True if no request is waiting or running."""
        return not self._waiting and not self._id_by_slot

    def submit(self, request: GenerationRequest) -> int:
        """Add a request to the queue; it waits for a free slot.

        Returns:
            Id of the request.

        Raises:
            UserError: The prompt and the maximum number of new tokens exceed the model's context.
        """
        check_context_length(self.model.config, len(request.prompt), request.max_new_tokens)
        self._last_id += 1
        self._waiting.append((self._last_id, request))
        return self._last_id

    def cancel(self, request_id: int) -> None:
        """Drop a waiting or running request; the id of a finished request is ignored."""
        self._waiting = collections.deque(each for each in self._waiting if each[0] != request_id)
        for slot in [slot for slot, other in self._id_by_slot.items() if other == request_id]:
            del self._id_by_slot[slot]
            self._first_tokens.pop(slot, None)
            self._cancelled.append(slot)

    def reset(self) -> None:
        """Drop all requests, and the KV cache on the device."""
        self._state = None
        self._waiting.clear()
        self._id_by_slot, self._first_tokens, self._cancelled = {}, {}, []

    def step(self) -> list[RequestOutput]:
        """Prefill waiting requests into free slots, then run up to `STEPS_PER_CALL` decode steps.

        Returns:
            New tokens of each running request, including requests that have just finished.

        Raises:
            RequestError: A request could not be started.
        """
        if self._state is not None:
            for slot in self._cancelled:
                self._state = self._state.replace(active=self._state.active.at[slot].set(False))
        self._cancelled = []
        while self._waiting and len(self._id_by_slot) < self._num_slots:
            slot = next(free for free in range(self._num_slots) if free not in self._id_by_slot)
            request_id, request = self._waiting.popleft()
            try:
                self._first_tokens[slot] = self._prefill(slot, request)
            except Exception as error:  # Such as XlaRuntimeError, if the device lacks memory.
                if self._is_lost():
                    raise
                raise RequestError(request_id) from error
            self._id_by_slot[slot] = request_id
        if not self._id_by_slot or self._state is None:
            return []
        state, sampled, count_B = decoding.decode(
            self.model, STEPS_PER_CALL, self._variables, self._layers, self._state, self._end_ids
        )
        self._state = state
        first_tokens, self._first_tokens = self._first_tokens, {}
        first_tokens, sampled, count_B, active_B, wants_logprobs_B = jax.device_get(
            (first_tokens, sampled, count_B, state.active, state.wants_logprobs)
        )
        outputs = []
        for slot, request_id in list(self._id_by_slot.items()):
            tokens = (
                [_token(first_tokens[slot], (), wants_logprobs_B[slot])]
                if slot in first_tokens
                else []
            )
            tokens += [
                _token(sampled, (slot, i), wants_logprobs_B[slot]) for i in range(count_B[slot])
            ]
            finish_reason = None
            if not active_B[slot]:
                del self._id_by_slot[slot]
                finish_reason = 'stop' if tokens and tokens[-1].id in self._end_ids else 'length'
            outputs.append(
                RequestOutput(
                    request_id, tokens[:-1] if finish_reason == 'stop' else tokens, finish_reason
                )
            )
        return outputs

    def _is_lost(self) -> bool:
        """Return whether the KV cache on the device is lost.

        The compiled prefill reuses the memory of the KV cache (buffer donation). If it fails, the
        KV cache may therefore be gone.
        """
        return any(array.is_deleted() for array in jax.tree.leaves(self._state))

    def _prefill(self, slot: int, request: GenerationRequest) -> decoding.SampledTokens:
        length = len(request.prompt)
        padded_length = _bucket_length(_MIN_PROMPT_LENGTH, length)
        cache_length = _bucket_length(
            _MIN_CACHE_LENGTH, max(padded_length, length + request.max_new_tokens)
        )
        # If no other request is running, reallocate the KV cache at the length of this one.
        if self._state is None or (
            not self._id_by_slot and self._state.cache_length != cache_length
        ):
            per_layer = self._layers is not None
            self._state = decoding.init_decode_state(
                self.model.config, self._num_slots, cache_length, per_layer
            )
        elif self._state.cache_length < cache_length:
            self._state = decoding.grow_cache(self._state, cache_length)
        tokens_T = np.zeros(padded_length, np.int32)
        tokens_T[:length] = request.prompt
        sampling = SamplingParams(
            jax.random.key(0) if request.key is None else request.key,
            jnp.float32(request.temperature),
            jnp.int32(request.top_k),
            jnp.float32(request.top_p),
        )
        slot_request = decoding.SlotRequest(
            jnp.int32(slot),
            jnp.int32(request.max_new_tokens),
            jnp.bool_(request.wants_logprobs),
            sampling,
        )
        self._state, first_token = decoding.prefill(
            self.model,
            self._variables,
            self._state,
            jnp.asarray(tokens_T),
            np.int32(length),
            slot_request,
            self._end_ids,
        )
        return first_token


def check_context_length(config: ModelConfig, prompt_length: int, max_new_tokens: int) -> None:
    """Check that a prompt and its answer fit into the model's context.

    Args:
        config: Configuration of the model.
        prompt_length: Length of the prompt in tokens.
        max_new_tokens: Maximum number of new tokens.

    Raises:
        UserError: The sum exceeds the context length.
    """
    if prompt_length + max_new_tokens > config.context:
        raise errors.UserError(
            f'A prompt of {prompt_length} tokens and an answer of up to {max_new_tokens} tokens '
            f'exceed the context length of {config.name}, {config.context} tokens.'
        )


def _token(sampled: decoding.SampledTokens, at: tuple[int, ...], wants_logprobs: bool) -> Token:
    top_logprobs = zip(
        sampled.top_tokens[at].tolist(), sampled.top_log_probability[at].tolist(), strict=True
    )
    return Token(
        int(sampled.token[at]),
        float(sampled.log_probability[at]),
        list(top_logprobs) if wants_logprobs else [],
    )


def _bucket_length(minimum: int, needed: int) -> int:
    """Return a length of at least `needed`: `minimum` times the smallest sufficient power of two.

    As there are only a few such lengths, only a few shapes are compiled.
    """
    return minimum << max(0, (-(-needed // minimum) - 1).bit_length())
