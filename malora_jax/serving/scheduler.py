"""Scheduler of the server: runs one engine with continuous batching per model.

One thread runs the engines, and another one decodes their tokens to text. The event loop sends the
text to the clients, so that neither thread waits for a client.
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
from malora_jax.serving.errors import RefusedError, failed, shutting_down


@dataclasses.dataclass
class Piece:
    """A new part of a text.

    Attributes:
        text: New text that can be shown; incomplete characters and possible beginnings of a stop
            string are held back.
        tokens: New tokens. If a stop string ends the text, they may go beyond `text`.
        finish: 'stop' or 'length' in the last piece, else None.
    """

    text: str
    tokens: list[Token]
    finish: str | None


class Generation:
    """The texts of one HTTP request; may be used only in the event loop's thread.

    Attributes:
        texts: Texts, in the order of the response.
        loop: Event loop that handles the request.
    """

    def __init__(self, model: str, count: int):
        self.texts = [PendingText(self, model, index) for index in range(count)]
        self.loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Piece | RefusedError]] = asyncio.Queue()

    def put(self, index: int, piece: Piece | RefusedError) -> None:
        """Add a new piece of a text, or the error that ends it.

        Args:
            index: Index of the text in the response.
            piece: New piece or error.
        """
        self._news.put_nowait((index, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield new pieces of all texts, each with the index of its text, until all are finished.

        Raises:
            RefusedError: The generation of a text failed.
        """
        running = len(self.texts)
        while running:
            index, piece = await self._news.get()
            if isinstance(piece, RefusedError):
                raise piece
            running -= piece.finish is not None
            yield index, piece


class PendingText:
    """A text that is queued or being generated.

    Only the text thread uses `is_over`, and only the writer thread uses the attributes after it.

    Attributes:
        generation: All texts of the same HTTP request.
        model: Name of the model.
        index: Index in the response.
        request: Request to the engine; set by `Scheduler.submit`.
        seed: Random seed that all texts of the HTTP request share; None = `request` has the key.
        stream: Incremental decoder from tokens to text.
        is_over: Whether the last piece was delivered.
        told: Ids of the tokens that the engine has generated so far.
        repeats: Number of these tokens that must still be generated again after an engine reset.
        is_suspect: Whether a failed step included this text and others.
    """

    request: GenerationRequest
    seed: int | None
    stream: TextStream

    def __init__(self, generation: Generation, model: str, index: int):
        self.generation = generation
        self.model = model
        self.index = index
        self.is_over = False
        self.told: list[int] = []
        self.repeats = 0
        self.is_suspect = False


# Results of a step: the news of each text, or None if the text failed.
_Found = list[tuple[PendingText, RequestOutput | None]]


class Scheduler:
    """Generates the texts of several models, with one engine per model, whose steps alternate.

    Each engine uses continuous batching: a queued text is prefilled as soon as a row is free, and
    each step decodes a few tokens of all running texts.

    An error affects only the text that causes it. If the prefill of a text fails, or its tokens
    cannot be decoded to text, only that text fails. An error of a compiled decode step does not
    reveal which text caused it. All texts of that step are then generated again, one at a time,
    until each is past the token where the step failed. The text whose step fails again has failed;
    the others, and the queued ones, continue. A text depends only on its own request, so that the
    repeated tokens are the same; they are not sent to the client again.
    """

    def __init__(self, models: Mapping[str, LanguageModel], rows: int, most_waiting: int):
        """Create the engines; nothing is generated before `start`.

        Args:
            models: Models by the names that requests use.
            rows: Number of texts of each model that are decoded together (batch size).
            most_waiting: Maximum number of queued texts, which wait for a free row.
        """
        self._models = models
        self._writers = {name: _Writer(model, rows) for name, model in models.items()}
        self._most = rows * len(models) + most_waiting
        self._asked: collections.deque[tuple[str, PendingText]] = collections.deque()
        self._open: set[PendingText] = set()
        self._wake = threading.Condition()
        self._is_stopped = False
        self._found: queue.SimpleQueue[_Found | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write, name='writer', daemon=True),
            threading.Thread(target=self._read, name='texts', daemon=True),
        ]
        self.is_draining = False

    @property
    def open_requests(self) -> int:
        """Number of texts that are queued or being generated."""
        return len(self._open)

    def start(self) -> None:
        """Start the threads, which generate texts."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Refuse new requests, but finish those that are open; thread-safe."""
        self.is_draining = True

    def end_all(self) -> None:
        """Refuse new requests, and end all open texts with status 503; thread-safe."""
        self.drain()
        with self._wake:
            texts = list(self._open)
            self._drop(texts)
        self._deliver([(text, shutting_down()) for text in texts])

    def stop(self) -> None:
        """End all open texts, and stop the threads after their current step (a few tokens)."""
        self.end_all()
        with self._wake:
            self._is_stopped = True
            self._wake.notify()
        for thread in self._threads:
            thread.join()

    def open(self, model: str, count: int) -> Generation:
        """Reserve places in the queue for the texts of a request; call it in the event loop.

        Args:
            model: Name of the model.
            count: Number of texts.

        Raises:
            RefusedError: The queue is full, or the server is shutting down.
        """
        if self.is_draining:
            raise shutting_down()
        with self._wake:
            if len(self._open) + count > self._most:
                raise RefusedError(429, 'Too many requests wait already; try again later.')
            generation = Generation(model, count)
            self._open.update(generation.texts)
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
            seed: Random seed of all texts of the HTTP request; None = `request` has the key.
        """
        tokenizer = self._models[text.model].tokenizer
        text.request, text.seed = request, seed
        text.stream = TextStream(StopCondition(tokenizer, tuple(stops)))
        with self._wake:
            if text in self._open:
                self._asked.append(('submit', text))
                self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Cancel the unfinished texts of a request; thread-safe."""
        with self._wake:
            self._drop([text for text in generation.texts if text in self._open])

    def _drop(self, texts: Iterable[PendingText]) -> None:
        for text in texts:
            self._open.discard(text)
            self._asked.append(('cancel', text))
        self._wake.notify()

    def _write(self) -> None:
        """Run the engines, and pass their results to the text thread; the writer thread's loop."""
        while True:
            with self._wake:
                while not (self._is_stopped or self._asked or self._is_busy()):
                    self._wake.wait()
                if self._is_stopped:
                    break
                asked, self._asked = self._asked, collections.deque()
            for what, text in asked:
                writer = self._writers[text.model]
                (writer.submit if what == 'submit' else writer.cancel)(text)
            for writer in self._writers.values():
                if writer.is_busy and (found := writer.step()):
                    self._found.put(found)
        self._found.put(None)

    def _is_busy(self) -> bool:
        return any(writer.is_busy for writer in self._writers.values())

    def _read(self) -> None:
        """Decode tokens to text, and pass it to the event loop; the text thread's loop."""
        while (found := self._found.get()) is not None:
            news = [(text, self._piece(text, news)) for text, news in found if not text.is_over]
            self._deliver([(text, piece) for text, piece in news if piece is not None])

    def _piece(self, text: PendingText, news: RequestOutput | None) -> Piece | RefusedError | None:
        piece: Piece | RefusedError
        if news is None:
            piece = RefusedError(500, 'The model failed; the log says why.')
        else:
            try:
                shown = text.stream.add([token.id for token in news.tokens])
                finish = 'stop' if text.stream.is_over else news.finish_reason
                if not (shown or news.tokens or finish):
                    return None
                piece = Piece(shown + text.stream.flush() if finish else shown, news.tokens, finish)
            except Exception:  # A tokenizer may be unable to decode what the model generates.
                piece = failed()
        text.is_over = isinstance(piece, RefusedError) or piece.finish is not None
        if text.is_over:
            with self._wake:
                # A stop string may end a text that the engine still generates, so cancel it there.
                # If the engine has finished it, that has no effect.
                self._drop([text] if text in self._open else [])
        return piece

    def _deliver(self, news: Sequence[tuple[PendingText, Piece | RefusedError]]) -> None:
        def put(loop: asyncio.AbstractEventLoop) -> None:
            for text, piece in news:
                if text.generation.loop is loop:
                    text.generation.put(text.index, piece)

        for loop in {text.generation.loop for text, _ in news}:
            with contextlib.suppress(RuntimeError):  # The loop may be closed: no client waits.
                loop.call_soon_threadsafe(put, loop)


class _Writer:
    """Generates the texts of one model; only the writer thread uses it."""

    def __init__(self, model: LanguageModel, rows: int):
        self._engine = Engine(model.model, model.variables, [model.end_id], rows)
        self._rows = rows
        self._waiting: collections.deque[PendingText] = collections.deque()
        self._begun: dict[int, PendingText] = {}  # Running texts by the engine's request number.

    @property
    def is_busy(self) -> bool:
        """True if there are queued or running texts."""
        return bool(self._waiting or self._begun)

    def submit(self, text: PendingText) -> None:
        """Add a text to the queue."""
        self._waiting.append(text)

    def cancel(self, text: PendingText) -> None:
        """Remove a text from the queue or the engine; a finished text is ignored."""
        if text in self._waiting:
            self._waiting.remove(text)
        for number in [number for number, other in self._begun.items() if other is text]:
            self._engine.cancel(number)
            del self._begun[number]

    def step(self) -> _Found:
        """Fill free rows from the queue, and generate a few tokens of all running texts."""
        while self._waiting and self._has_room():
            text = self._waiting.popleft()
            self._begun[self._engine.submit(_keyed(text))] = text
        try:
            found = self._engine.step()
        except RequestError as error:
            traceback.print_exc()
            return [(self._begun.pop(error.request_id), None)]
        except Exception:  # The device may raise any error, most often out of memory.
            traceback.print_exc()
            return self._recover()
        return [self._tell(news) for news in found]

    def _has_room(self) -> bool:
        """Return whether the next queued text can start; a suspect text must run alone."""
        texts = [self._waiting[0], *self._begun.values()]
        alone = any(text.is_suspect for text in texts)
        return len(self._begun) < (1 if alone else self._rows)

    def _recover(self) -> _Found:
        """Reset the engine after a failed step, and queue its texts again as suspects.

        Returns:
            The failed text, if the step had only one; otherwise nothing.
        """
        self._engine.reset()
        texts, self._begun = list(self._begun.values()), {}
        if len(texts) == 1:
            return [(texts[0], None)]
        for text in texts:
            text.is_suspect, text.repeats = True, len(text.told)
        self._waiting.extendleft(reversed(texts))
        return []

    def _tell(self, news: RequestOutput) -> tuple[PendingText, RequestOutput | None]:
        """Return the news of a text without the tokens that were generated before a reset.

        The news are None, for a failure, if a repeated token differs or the text ends early.
        """
        text = self._begun[news.request_id]
        ids = [token.id for token in news.tokens]
        again, start = min(text.repeats, len(ids)), len(text.told) - text.repeats
        is_same = ids[:again] == text.told[start : start + again]
        text.repeats -= again
        text.told += ids[again:]
        if news.finish_reason or not is_same:
            self.cancel(text)
        if not is_same or (news.finish_reason and text.repeats):
            return text, None
        if len(ids) > again:
            text.is_suspect = False
        return text, dataclasses.replace(news, tokens=news.tokens[again:])


def _keyed(text: PendingText) -> GenerationRequest:
    """Return the engine's request for a text, with a random key derived from seed and index."""
    if text.seed is None or text.request.temperature == 0:
        return text.request
    key = jax.random.fold_in(jax.random.key(text.seed), text.index)
    return dataclasses.replace(text.request, key=key)
