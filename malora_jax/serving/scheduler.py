"""Scheduler of the server: continuous batching of requests for several models.

Models with the same base model and end token share an engine, which decodes their texts in one
batch. The engine thread runs the engines, and the detokenizer thread decodes their tokens to text.
The event loop sends the text to the clients, so that neither thread waits for a client.
"""

import asyncio
import collections
import contextlib
import queue
import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence

from malora_jax.inference import LanguageModel
from malora_jax.models.detokenization import StopCondition, TextStream
from malora_jax.models.engine import GenerationRequest, RequestOutput
from malora_jax.serving.engine_runner import EngineRunner, StepResults
from malora_jax.serving.errors import ApiError, log_model_failure, shutting_down_error
from malora_jax.serving.generation import Generation, PendingText, TextPiece


class Scheduler:
    """Generates the texts of several models.

    Models that share a base model share an engine, unless their texts end with different tokens.
    Several engines take turns, one step each. They use continuous batching: a queued text is
    prefilled as soon as a slot of the KV cache is free, and each step decodes a few tokens of all
    running texts.

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
            batch_size: Number of texts that an engine decodes together.
            max_waiting: Maximum number of queued texts, which wait for a free slot of the KV cache.
        """
        self._models = models
        self._runners = [EngineRunner(group, batch_size) for group in _by_engine(models)]
        self._runner_of = {name: runner for runner in self._runners for name in runner.models}
        self._max_texts = batch_size * len(self._runners) + max_waiting
        self._commands: collections.deque[tuple[str, PendingText]] = collections.deque()
        self._open_texts: set[PendingText] = set()
        self._wake = threading.Condition()
        self._is_stopped = False
        self._results: queue.SimpleQueue[StepResults | None] = queue.SimpleQueue()
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
                runner = self._runner_of[text.model]
                (runner.submit if command == 'submit' else runner.cancel)(text)
            for runner in self._runners:
                if runner.is_busy and (results := runner.step()):
                    self._results.put(results)
        self._results.put(None)

    def _is_busy(self) -> bool:
        return any(runner.is_busy for runner in self._runners)

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


def _by_engine(models: Mapping[str, LanguageModel]) -> list[dict[str, LanguageModel]]:
    """Group models that can share an engine: with the same base weights and the same end token."""
    groups: dict[Hashable, dict[str, LanguageModel]] = {}
    for name, model in models.items():
        key = id(model.variables['params']), model.end_id
        groups.setdefault(key, {})[name] = model
    return list(groups.values())
