"""Scheduler of the server: runs one engine with continuous batching per model.

The engine thread runs the engines, and the detokenizer thread decodes their tokens to text. The
event loop sends the text to the clients, so that neither thread waits for a client.
"""

import asyncio
import collections
import contextlib
import dataclasses
import queue
import threading
import traceback
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import jax

from malora_jax.inference import LanguageModel
from malora_jax.models.detokenization import StopCondition, TextStream
from malora_jax.models.engine import Engine, GenerationRequest, RequestError, RequestOutput, Token
from malora_jax.serving.errors import ApiError, log_model_failure, shutting_down_error


@dataclasses.dataclass
class TextPiece:
    """A new part of a text.

    Attributes:
        text: New text that can be shown; incomplete characters and possible beginnings of a stop
            string are held back.
        tokens: New tokens. If a stop string ends the text, the tokens may extend beyond `text`.
        finish_reason: 'stop' or 'length' in the last piece, else None.
    """

    text: str
    tokens: list[Token]
    finish_reason: str | None


class Generation:
    """The texts of one HTTP request; may be used only in the event loop's thread.

    Attributes:
        texts: Texts, in the order of the response.
        loop: Event loop that handles the request.
    """

    def __init__(self, model: str, count: int):
        self.texts = [PendingText(self, model, index) for index in range(count)]
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, TextPiece | ApiError]] = asyncio.Queue()

    def put(self, index: int, piece: TextPiece | ApiError) -> None:
        """Add a new piece of a text, or the error that ends it.

        Args:
            index: Index of the text in the response.
            piece: New piece or error.
        """
        self._queue.put_nowait((index, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, TextPiece]]:
        """Yield new pieces of all texts, each with the index of its text, until all are finished.

        Raises:
            ApiError: The generation of a text failed.
        """
        running = len(self.texts)
        while running:
            index, piece = await self._queue.get()
            if isinstance(piece, ApiError):
                raise piece
            running -= piece.finish_reason is not None
            yield index, piece


class PendingText:
    """A text that is queued or being generated.

    Only the detokenizer thread uses `is_over`. Only the engine thread uses `generated_ids`,
    `repeats_left` and `is_suspect`.

    Attributes:
        generation: All texts of the same HTTP request.
        model: Name of the model.
        index: Index of the text in the response.
        request: Request to the engine; set by `Scheduler.submit`.
        seed: Random seed that all texts of the HTTP request share; may be None if `request.key` is
            set or decoding is greedy.
        stream: Incremental decoder from tokens to text.
        is_over: Whether the last piece was delivered.
        generated_ids: Ids of the tokens that the engine has generated so far.
        repeats_left: Number of these tokens that must still be generated again after an engine
            reset.
        is_suspect: Whether this text may have caused the failure of a step with several texts.
    """

    request: GenerationRequest
    seed: int | None
    stream: TextStream

    def __init__(self, generation: Generation, model: str, index: int):
        self.generation = generation
        self.model = model
        self.index = index
        self.is_over = False
        self.generated_ids: list[int] = []
        self.repeats_left = 0
        self.is_suspect = False


# Results of a step: the engine's output for each text, or None if the text failed.
_StepResults = list[tuple[PendingText, RequestOutput | None]]


class Scheduler:
    """Generates the texts of several models; each model has its own engine.

    The engines take turns, one step each. They use continuous batching: a queued text is prefilled
    as soon as a slot of the KV cache is free, and each step decodes a few tokens of all running
    texts.

    An error affects only the text that causes it. If the prefill of a text fails, or its tokens
    cannot be decoded to text, only that text fails. An error of a compiled decode step does not
    reveal which text caused it. All texts of that step are then generated again, one at a time,
    until each is past the token where the step failed. The text whose step fails again has failed;
    the other texts continue. A text depends only on its own request, so that the repeated tokens
    are the same; they are not sent to the client again.
    """

    def __init__(self, models: Mapping[str, LanguageModel], batch_size: int, max_waiting: int):
        """Create the engines; nothing is generated before `start`.

        Args:
            models: Models by the names that requests use.
            batch_size: Number of texts of each model that are decoded together.
            max_waiting: Maximum number of queued texts, which wait for a free slot of the KV cache.
        """
        self._models = models
        self._runners = {name: _EngineRunner(model, batch_size) for name, model in models.items()}
        self._max_texts = batch_size * len(models) + max_waiting
        self._commands: collections.deque[tuple[str, PendingText]] = collections.deque()
        self._open_texts: set[PendingText] = set()
        self._wake = threading.Condition()
        self._is_stopped = False
        self._results: queue.SimpleQueue[_StepResults | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run_engines, name='engines', daemon=True),
            threading.Thread(target=self._detokenize, name='detokenizer', daemon=True),
        ]
        self.is_draining = False

    @property
    def num_open_texts(self) -> int:
        """Number of texts that are queued or being generated."""
        return len(self._open_texts)

    def start(self) -> None:
        """Start the engine thread and the detokenizer thread."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Refuse new requests, but finish the open ones; thread-safe."""
        self.is_draining = True

    def end_all(self) -> None:
        """Refuse new requests, and end all open texts with status 503; thread-safe."""
        self.drain()
        with self._wake:
            texts = list(self._open_texts)
            self._drop(texts)
        self._deliver([(text, shutting_down_error()) for text in texts])

    def stop(self) -> None:
        """End all open texts, and stop the threads after their current step (a few tokens)."""
        self.end_all()
        with self._wake:
            self._is_stopped = True
            self._wake.notify()
        for thread in self._threads:
            thread.join()

    def reserve(self, model: str, count: int) -> Generation:
        """Reserve places in the queue for the texts of a request; call it in the event loop.

        Args:
            model: Name of the model.
            count: Number of texts.

        Returns:
            The texts, to be passed to `submit` one by one.

        Raises:
            ApiError: The queue is full, or the server is shutting down.
        """
        if self.is_draining:
            raise shutting_down_error()
        with self._wake:
            if len(self._open_texts) + count > self._max_texts:
                raise ApiError(429, 'The queue is full; try again later.')
            generation = Generation(model, count)
            self._open_texts.update(generation.texts)
        return generation

    def submit(
        self,
        text: PendingText,
        request: GenerationRequest,
        stops: Sequence[str],
        seed: int | None = None,
    ) -> None:
        """Queue a text for generation, unless it was cancelled.

        Args:
            text: Text with a reserved place in the queue.
            request: Request to the engine; prompt and answer must fit into the model's context.
            stops: Stop strings, which end the text.
            seed: Random seed of all texts of the HTTP request; may be None if `request.key` is set
                or decoding is greedy.
        """
        tokenizer = self._models[text.model].tokenizer
        text.request, text.seed = request, seed
        text.stream = TextStream(StopCondition(tokenizer, tuple(stops)))
        with self._wake:
            if text in self._open_texts:
                self._commands.append(('submit', text))
                self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Cancel the unfinished texts of a request; thread-safe."""
        with self._wake:
            self._drop([text for text in generation.texts if text in self._open_texts])

    def _drop(self, texts: Iterable[PendingText]) -> None:
        for text in texts:
            self._open_texts.discard(text)
            self._commands.append(('cancel', text))
        self._wake.notify()

    def _run_engines(self) -> None:
        """Run the engines, and pass their results to the detokenizer thread, until `stop`."""
        while True:
            with self._wake:
                while not (self._is_stopped or self._commands or self._is_busy()):
                    self._wake.wait()
                if self._is_stopped:
                    break
                commands, self._commands = self._commands, collections.deque()
            for command, text in commands:
                runner = self._runners[text.model]
                (runner.submit if command == 'submit' else runner.cancel)(text)
            for runner in self._runners.values():
                if runner.is_busy and (results := runner.step()):
                    self._results.put(results)
        self._results.put(None)

    def _is_busy(self) -> bool:
        return any(runner.is_busy for runner in self._runners.values())

    def _detokenize(self) -> None:
        """Decode tokens to text, and pass the text to the event loop, until the engines stop."""
        while (results := self._results.get()) is not None:
            pieces = [
                (text, self._piece(text, output)) for text, output in results if not text.is_over
            ]
            self._deliver([(text, piece) for text, piece in pieces if piece is not None])

    def _piece(
        self, text: PendingText, output: RequestOutput | None
    ) -> TextPiece | ApiError | None:
        piece: TextPiece | ApiError
        if output is None:
            piece = ApiError(500, 'The model failed; the log says why.')
        else:
            try:
                new_text = text.stream.add([token.id for token in output.tokens])
                finish = 'stop' if text.stream.is_over else output.finish_reason
                if not (new_text or output.tokens or finish):
                    return None
                piece = TextPiece(
                    new_text + text.stream.flush() if finish else new_text, output.tokens, finish
                )
            except Exception:  # A tokenizer may be unable to decode what the model generates.
                piece = log_model_failure()
        text.is_over = isinstance(piece, ApiError) or piece.finish_reason is not None
        if text.is_over:
            with self._wake:
                # A stop string may end a text that the engine is still generating, so cancel the
                # text in the engine. If the engine has finished the text, that has no effect.
                self._drop([text] if text in self._open_texts else [])
        return piece

    def _deliver(self, pieces: Sequence[tuple[PendingText, TextPiece | ApiError]]) -> None:
        def put(loop: asyncio.AbstractEventLoop) -> None:
            for text, piece in pieces:
                if text.generation.loop is loop:
                    text.generation.put(text.index, piece)

        for loop in {text.generation.loop for text, _ in pieces}:
            with contextlib.suppress(RuntimeError):  # A closed loop has no waiting clients.
                loop.call_soon_threadsafe(put, loop)


class _EngineRunner:
    """Generates the texts of one model; only the engine thread uses it."""

    def __init__(self, model: LanguageModel, batch_size: int):
        self._engine = Engine(model.model, model.variables, [model.end_id], batch_size)
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

    def step(self) -> _StepResults:
        """Start queued texts in free slots, and generate a few tokens of all running texts."""
        while self._waiting and self._can_start_next():
            text = self._waiting.popleft()
            self._running[self._engine.submit(_engine_request(text))] = text
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

    def _recover(self) -> _StepResults:
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


def _engine_request(text: PendingText) -> GenerationRequest:
    """Return the engine's request for a text, with a PRNG key derived from seed and index."""
    if text.seed is None or text.request.temperature == 0:
        return text.request
    key = jax.random.fold_in(jax.random.key(text.seed), text.index)
    return dataclasses.replace(text.request, key=key)
