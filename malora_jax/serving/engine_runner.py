"""Engine of the models that share a base model, and recovery from its failures."""

import collections
import dataclasses
import traceback
from collections.abc import Mapping

import jax

from malora_jax.inference import LanguageModel
from malora_jax.models.adapter_bank import bank_adapters
from malora_jax.models.engine import Engine, GenerationRequest, RequestError, RequestOutput
from malora_jax.serving.generation import PendingText

# Results of a step: the engine's output for each text, or None if the text failed.
StepResults = list[tuple[PendingText, RequestOutput | None]]


class EngineRunner:
    """Generates the texts of models that share an engine; only the engine thread uses it.

    Attributes:
        models: The models by name.
    """

    def __init__(self, models: Mapping[str, LanguageModel], batch_size: int):
        self.models = models
        adapted = {name: each for name, each in models.items() if each.model.adapter is not None}
        any_model = next(iter(models.values()))
        decoder, variables = any_model.model, any_model.variables
        if adapted:
            decoder, variables = bank_adapters(
                [(each.model, each.variables) for each in adapted.values()]
            )
        # The index after the last adapter selects the base model.
        self._adapters = dict.fromkeys(models, len(adapted))
        self._adapters |= {name: index for index, name in enumerate(adapted)}
        self._engine = Engine(decoder, variables, [any_model.end_id], batch_size)
        self._batch_size = batch_size
        self._waiting: collections.deque[PendingText] = collections.deque()
        self._running: dict[int, PendingText] = {}  # Running texts by the engine's request number.

    @property
    def is_busy(self) -> bool:
        """True if there are queued or running texts."""
        return bool(self._waiting or self._running)

    def submit(self, text: PendingText) -> None:
        """Add a text to the queue."""
        self._waiting.append(text)

    def cancel(self, text: PendingText) -> None:
        """Remove a text from the queue or the engine; a finished text is ignored."""
        if text in self._waiting:
            self._waiting.remove(text)
        for number in [number for number, other in self._running.items() if other is text]:
            self._engine.cancel(number)
            del self._running[number]

    def step(self) -> StepResults:
        """Start queued texts in free slots, and generate a few tokens of all running texts."""
        while self._waiting and self._can_start_next():
            text = self._waiting.popleft()
            request = _engine_request(text, self._adapters[text.model])
            self._running[self._engine.submit(request)] = text
        try:
            outputs = self._engine.step()
        except RequestError as error:
            traceback.print_exc()
            return [(self._running.pop(error.request_id), None)]
        except Exception:  # The device may raise any error, most often out of memory.
            traceback.print_exc()
            return self._recover()
        return [self._skip_repeats(output) for output in outputs]

    def _can_start_next(self) -> bool:
        """Return whether the next queued text can start.

        It needs a free slot. A text that may have caused an earlier failure (`is_suspect`) must run
        alone.
        """
        texts = [self._waiting[0], *self._running.values()]
        alone = any(text.is_suspect for text in texts)
        return len(self._running) < (1 if alone else self._batch_size)

    def _recover(self) -> StepResults:
        """Reset the engine after a failed step, and queue the texts of the step again.

        Each of them may have caused the failure. They are therefore marked (`is_suspect`), and run
        one at a time. If the step had only one text, this text has caused the failure, and is not
        queued again.

        Returns:
            The results of the step: one failed text, or none.
        """
        self._engine.reset()
        texts, self._running = list(self._running.values()), {}
        if len(texts) == 1:
            return [(texts[0], None)]
        for text in texts:
            text.is_suspect, text.repeats_left = True, len(text.generated_ids)
        self._waiting.extendleft(reversed(texts))
        return []

    def _skip_repeats(self, output: RequestOutput) -> tuple[PendingText, RequestOutput | None]:
        """Remove the tokens that the client has already received from an output of the engine.

        After a reset, the engine generates the tokens of a text again from the start.

        Returns:
            The text, and its output with the new tokens only. The output is None if the text has
            failed, because a repeated token differs or the text ends too early.
        """
        text = self._running[output.request_id]
        ids = [token.id for token in output.tokens]
        num_repeated, start = (
            min(text.repeats_left, len(ids)),
            len(text.generated_ids) - text.repeats_left,
        )
        is_same = ids[:num_repeated] == text.generated_ids[start : start + num_repeated]
        text.repeats_left -= num_repeated
        text.generated_ids += ids[num_repeated:]
        if output.finish_reason or not is_same:
            self.cancel(text)
        if not is_same or (output.finish_reason and text.repeats_left):
            return text, None
        if len(ids) > num_repeated:
            text.is_suspect = False
        return text, dataclasses.replace(output, tokens=output.tokens[num_repeated:])


def _engine_request(text: PendingText, adapter: int) -> GenerationRequest:
    """Return the engine's request for a text, with a PRNG key derived from seed and index."""
    request = dataclasses.replace(text.request, adapter=adapter)
    if text.seed is None or request.temperature == 0:
        return request
    key = jax.random.fold_in(jax.random.key(text.seed), text.index)
    return dataclasses.replace(request, key=key)
