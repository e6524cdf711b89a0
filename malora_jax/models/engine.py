"""Continuous batching: as soon as a request finishes, a waiting one takes its slot.

The engine works on tokens. It knows end tokens but no stop strings: a caller that finds a stop
string in the text cancels the request.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.distributed import sharding
from malora_jax.models import batch_sizes, decode_state, decoding, prefill
from malora_jax.models.adapter_bank import bank_adapters
from malora_jax.models.config import ModelConfig
from malora_jax.models.decode_state import DecodeState
from malora_jax.models.decoder import Decoder
from malora_jax.models.next_token import SampledTokens
from malora_jax.models.sampling import SamplingParams

# Maximum number of decode steps in one call of `Engine.step`, before tokens are copied to the host.
STEPS_PER_CALL = 4
# Largest number of prompts that are prefilled together, and of their tokens. A longer prompt is
# prefilled alone.
_MAX_PROMPTS = 8
_MAX_PROMPT_TOKENS = 256


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
            `next_token.NUM_TOP_LOGPROBS` most probable tokens.
        adapter: Index of the adapter in the decoder's bank of adapters; their number selects the
            base model alone. A decoder with a single adapter has a bank of one.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    key: jax.Array | None = None
    wants_logprobs: bool = False
    adapter: int = 0


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
    """Continuous batching of requests over slots, which are rows of the KV cache.

    The KV cache starts with the slots and the length that the requests need, grows with them, and
    starts again when no request is running. Waiting prompts are packed into one row and prefilled
    together. The tokens of a request do not depend on the other requests, but the shapes of the
    arrays do, and with them the rounding of sums.

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
            model: Decoder of the base model alone, with an adapter, or with a bank of adapters.
            variables: Collections of the decoder.
            end_ids: Ids of end tokens.
            num_slots: Maximum number of slots, that is, of requests decoded at a time.
        """
        if model.adapter is not None:
            model, variables = bank_adapters([(model, variables)])
        self.model = model
        self._variables = variables
        self._end_ids = np.array(end_ids, np.int32)
        self._num_slots = num_slots
        # On CPU, one array per layer is faster: see `decoding`. It needs arrays that are not
        # sharded.
        per_layer = jax.default_backend() == 'cpu' and not sharding.is_mesh_set()
        self._layers = decoding.unstack_layers(model.config, variables) if per_layer else None
        self._state: DecodeState | None = None
        self._waiting: collections.deque[tuple[int, GenerationRequest]] = collections.deque()
        # Request in each occupied slot, with its id, and the number of its tokens in the KV cache.
        self._running: dict[int, tuple[int, GenerationRequest]] = {}
        self._length_of: dict[int, int] = {}
        # First tokens that are not returned yet: results of `prefill`, each with its request ids.
        self._first_tokens: list[tuple[list[int], SampledTokens]] = []
        self._num_alone = 0  # Number of waiting requests to prefill alone, after a failure.
        # Slots of cancelled requests that are still active on the device.
        self._cancelled: list[int] = []
        self._last_id = 0

    @property
    def is_idle(self) -> bool:
        """True if no request is waiting or running."""
        return not self._waiting and not self._running

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
        for slot in [slot for slot, (other, _) in self._running.items() if other == request_id]:
            del self._running[slot]
            self._cancelled.append(slot)

    def reset(self) -> None:
        """Drop all requests, and the KV cache on the device."""
        self._state = None
        self._waiting.clear()
        self._running, self._first_tokens, self._cancelled = {}, [], []
        self._num_alone = 0

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
        while self._waiting and len(self._running) < self._num_slots:
            self._prefill_next()
        if not self._running:
            return []
        self._state = self._state_for([])
        state, sampled, count_B = decoding.decode(
            self.model, STEPS_PER_CALL, self._variables, self._layers, self._state, self._end_ids
        )
        self._state = state
        first_tokens, self._first_tokens = self._first_tokens, []
        first_tokens, sampled, count_B, active_B = jax.device_get(
            (first_tokens, sampled, count_B, state.active)
        )
        first_of: dict[int, tuple[SampledTokens, tuple[int, ...]]] = {
            request_id: (first, (i,))
            for request_ids, first in first_tokens
            for i, request_id in enumerate(request_ids)
        }
        outputs = []
        for slot, (request_id, request) in list(self._running.items()):
            self._length_of[slot] += int(count_B[slot])
            found = [first_of[request_id]] if request_id in first_of else []
            found += [(sampled, (slot, i)) for i in range(count_B[slot])]
            tokens = [_token(*each, request.wants_logprobs) for each in found]
            finish_reason = None
            if not active_B[slot]:
                del self._running[slot]
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

    def _prefill_next(self) -> None:
        """Prefill the next waiting requests, as many as are prefilled together.

        If that fails, they wait again, to be prefilled alone: one of them may be the reason.

        Raises:
            RequestError: A request that is prefilled alone could not be started.
        """
        free = self._num_slots - len(self._running)
        is_alone, self._num_alone = self._num_alone > 0, max(0, self._num_alone - 1)
        count, num_tokens = 1, len(self._waiting[0][1].prompt)
        for _, request in itertools.islice(self._waiting, 1, min(free, _MAX_PROMPTS)):
            num_tokens += len(request.prompt)
            if is_alone or num_tokens > _MAX_PROMPT_TOKENS:
                break
            count += 1
        group = [self._waiting.popleft() for _ in range(count)]
        try:
            slots, first_tokens = self._prefill([request for _, request in group])
        except Exception as error:  # Such as XlaRuntimeError, if the device lacks memory.
            if self._is_lost():
                raise
            if count == 1:
                raise RequestError(group[0][0]) from error
            self._num_alone = count
            self._waiting.extendleft(reversed(group))
            return
        self._first_tokens.append(([request_id for request_id, _ in group], first_tokens))
        for slot, (request_id, request) in zip(slots, group, strict=True):
            self._running[slot] = request_id, request
            self._length_of[slot] = len(request.prompt)

    def _prefill(self, requests: Sequence[GenerationRequest]) -> tuple[list[int], SampledTokens]:
        """Prefill requests into free slots; return the slots, and the first token of each."""
        lengths = [len(request.prompt) for request in requests]
        tokens_T = np.zeros(batch_sizes.prompt_length(sum(lengths)), np.int32)
        tokens_T[: sum(lengths)] = np.concatenate([request.prompt for request in requests])
        state = self._state = self._state_for(requests)
        free = (slot for slot in range(state.sizes[0]) if slot not in self._running)
        slots = list(itertools.islice(free, len(requests)))
        num_ignored = min(_MAX_PROMPTS, self._num_slots) - len(requests)

        def settings(values: Sequence[Any], ignored: Any, dtype: Any) -> jax.Array:
            return jnp.asarray([*values, *[ignored] * num_ignored], dtype)

        any_key = jax.random.key(0)
        keys = [any_key if request.key is None else request.key for request in requests]
        slot_requests = prefill.SlotRequests(
            settings(slots, state.sizes[0], jnp.int32),
            settings(lengths, 0, jnp.int32),
            settings([request.max_new_tokens for request in requests], 0, jnp.int32),
            settings([request.wants_logprobs for request in requests], False, bool),
            settings([request.adapter for request in requests], 0, jnp.int32),
            SamplingParams(
                jnp.stack([*keys, *[any_key] * num_ignored]),
                settings([request.temperature for request in requests], 0, jnp.float32),
                settings([request.top_k for request in requests], 0, jnp.int32),
                settings([request.top_p for request in requests], 1, jnp.float32),
            ),
        )
        end_ids = jnp.asarray(self._end_ids)
        self._state, first_tokens = prefill.prefill(
            self.model, self._variables, state, jnp.asarray(tokens_T), slot_requests, end_ids
        )
        return slots, first_tokens

    def _state_for(self, requests: Sequence[GenerationRequest]) -> DecodeState:
        """Return the state with slots and a KV cache that are large enough for the next steps.

        Args:
            requests: Requests to prefill, before those that are waiting.
        """
        # Those that are started later in this step, too, so that the state grows only once.
        free = self._num_slots - len(self._running)
        later = (request for _, request in self._waiting)
        coming = list(itertools.islice(itertools.chain(requests, later), free))
        running = [request for _, request in self._running.values()]
        num_slots = batch_sizes.num_slots(len(running) + len(coming), self._num_slots)
        lengths = [self._length_of[slot] for slot in self._running]
        lengths += [len(request.prompt) for request in coming]
        cache_length = batch_sizes.cache_length(
            max(lengths) + STEPS_PER_CALL,
            max(len(request.prompt) + request.max_new_tokens for request in running + coming),
        )
        config, state, sizes = self.model.config, self._state, (num_slots, cache_length)
        if state is not None and self._running:
            sizes = max(num_slots, state.sizes[0]), max(cache_length, state.sizes[1])
        if state is None or (not self._running and state.sizes != sizes):
            return decode_state.init_decode_state(config, *sizes, self._layers is not None)
        return state if state.sizes == sizes else decode_state.grow(config, *sizes, state)


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


def _token(sampled: SampledTokens, at: tuple[int, ...], wants_logprobs: bool) -> Token:
    top_logprobs = zip(
        sampled.top_tokens[at].tolist(), sampled.top_log_probability[at].tolist(), strict=True
    )
    return Token(
        int(sampled.token[at]),
        float(sampled.log_probability[at]),
        list(top_logprobs) if wants_logprobs else [],
    )
