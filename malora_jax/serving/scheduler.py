"""Threads that generate texts, and the event loop that hands them to clients.

One thread runs the engines, another one turns their tokens into text. Neither waits for a client.
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
from malora_jax.models.engine import Engine, News, Request, RequestError, Token
from malora_jax.models.texts import Ending, TextStream
from malora_jax.serving.errors import RefusedError, failed, shutting_down


@dataclasses.dataclass
class Piece:
    """What is new of a text.

    Attributes:
        text: What can be shown now.
        tokens: Those that were generated; a text that a stop string ends may show fewer.
        finish: 'stop' or 'length' with the last piece, else None.
    """

    text: str
    tokens: list[Token]
    finish: str | None


class Generation:
    """The texts of one HTTP request; of the event loop's thread.

    Attributes:
        texts: Each text, in the order of the response.
        loop: The event loop.
    """

    def __init__(self, model: str, count: int):
        self.texts = [PendingText(self, model, index) for index in range(count)]
        self.loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, Piece | RefusedError]] = asyncio.Queue()

    def put(self, index: int, piece: Piece | RefusedError) -> None:
        """Hand over what is new of a text."""
        self._news.put_nowait((index, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield what is new of any text, with its index, until all are finished.

        Raises:
            RefusedError: A text failed; what was generated is lost.
        """
        running = len(self.texts)
        while running:
            index, piece = await self._news.get()
            if isinstance(piece, RefusedError):
                raise piece
            running -= piece.finish is not None
            yield index, piece


class PendingText:
    """A text for which there is a place in the queue.

    Attributes:
        generation: All texts of the same HTTP request.
        model: Name of the model.
        index: Place in the response.
        request: What the engine is asked for, once that is known.
        seed: Random seed that the text shares with the others, or None if it needs none.
        stream: Makes text of tokens.
        is_over: Whether nothing more is told; of the text thread.
        told: Tokens that the engine has told; of the writer thread, as are the next ones.
        repeats: How many of these a fresh engine has yet to generate again.
        is_suspect: Whether a step failed that generated this text and others.
    """

    request: Request
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


# What became of a text in a step; None if it failed.
_Found = list[tuple[PendingText, News | None]]


class Scheduler:
    """Generates the texts of several models, each with an engine of its own, in turns.

    Errors of one text stay with it. If it cannot be begun, or not be decoded, it alone fails. An
    error of a compiled step does not say which text caused it: all texts of that step are generated
    again, one at a time, until each is past the place where the step failed. The one whose step
    fails once more has failed; the others, and those that wait, continue. What a text depends on is
    its request alone, so that the tokens told before are generated again and not told twice.
    """

    def __init__(self, models: Mapping[str, LanguageModel], rows: int, most_waiting: int):
        """Makes the engines; nothing is generated before `start`.

        Args:
            models: Models by the names that requests give.
            rows: Texts of each model that are generated side by side.
            most_waiting: Texts that may wait for a row.
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
        """Number of texts that are generated or wait."""
        return len(self._open)

    def start(self) -> None:
        """Begin to generate."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Take no more texts, from any thread; those that were taken are finished."""
        self.is_draining = True

    def end_all(self) -> None:
        """Tell all who wait for a text that none will come, from any thread."""
        self.drain()
        with self._wake:
            texts = list(self._open)
            self._drop(texts)
        self._deliver([(text, shutting_down()) for text in texts])

    def stop(self) -> None:
        """End the threads after what they are at, at most a few tokens."""
        self.end_all()
        with self._wake:
            self._is_stopped = True
            self._wake.notify()
        for thread in self._threads:
            thread.join()

    def open(self, model: str, count: int) -> Generation:
        """Take places in the queue for the texts of a request; from the event loop.

        Raises:
            RefusedError: Too many texts wait already, or the server is shutting down.
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
        self, text: PendingText, request: Request, stops: Sequence[str], seed: int | None = None
    ) -> None:
        """Have a text generated; one that was cancelled is forgotten.

        Args:
            text: Its place in the queue.
            request: Prompt and answer, which fit into the model's context.
            stops: Strings that end it.
            seed: Random seed of all texts of the HTTP request, if the request has no key.
        """
        tokenizer = self._models[text.model].tokenizer
        text.request, text.seed = request, seed
        text.stream = TextStream(Ending(tokenizer, tuple(stops)))
        with self._wake:
            if text in self._open:
                self._asked.append(('submit', text))
                self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Forget the texts of a request that are not finished; from any thread."""
        with self._wake:
            self._drop([text for text in generation.texts if text in self._open])

    def _drop(self, texts: Iterable[PendingText]) -> None:
        for text in texts:
            self._open.discard(text)
            self._asked.append(('cancel', text))
        self._wake.notify()

    def _write(self) -> None:
        """Run the engines; what they tell is for the text thread."""
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
        """Turn tokens into text; the event loop hands it to clients."""
        while (found := self._found.get()) is not None:
            news = [(text, self._piece(text, news)) for text, news in found if not text.is_over]
            self._deliver([(text, piece) for text, piece in news if piece is not None])

    def _piece(self, text: PendingText, news: News | None) -> Piece | RefusedError | None:
        piece: Piece | RefusedError
        if news is None:
            piece = RefusedError(500, 'The model failed; the log says why.')
        else:
            try:
                shown = text.stream.add([token.id for token in news.tokens])
                finish = 'stop' if text.stream.is_over else news.finish
                if not (shown or news.tokens or finish):
                    return None
                piece = Piece(shown + text.stream.rest() if finish else shown, news.tokens, finish)
            except Exception:  # Of a tokenizer that cannot decode what the model says.
                piece = failed()
        text.is_over = isinstance(piece, RefusedError) or piece.finish is not None
        if text.is_over:
            with self._wake:
                # The engine may have finished it long ago, and will not look for it.
                self._drop([text] if text in self._open else [])
        return piece

    def _deliver(self, news: Sequence[tuple[PendingText, Piece | RefusedError]]) -> None:
        def put(loop: asyncio.AbstractEventLoop) -> None:
            for text, piece in news:
                if text.generation.loop is loop:
                    text.generation.put(text.index, piece)

        for loop in {text.generation.loop for text, _ in news}:
            with contextlib.suppress(RuntimeError):  # The loop is closed; nobody waits.
                loop.call_soon_threadsafe(put, loop)


class _Writer:
    """Generates the texts of one model; of the writer thread."""

    def __init__(self, model: LanguageModel, rows: int):
        self._engine = Engine(model.model, model.variables, [model.end_id], rows)
        self._rows = rows
        self._waiting: collections.deque[PendingText] = collections.deque()
        self._begun: dict[int, PendingText] = {}  # By the engine's number.

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to generate."""
        return bool(self._waiting or self._begun)

    def submit(self, text: PendingText) -> None:
        """Let a text wait for a row."""
        self._waiting.append(text)

    def cancel(self, text: PendingText) -> None:
        """Forget a text, wherever it stands; one that is finished is not there any more."""
        if text in self._waiting:
            self._waiting.remove(text)
        for number in [number for number, other in self._begun.items() if other is text]:
            self._engine.cancel(number)
            del self._begun[number]

    def step(self) -> _Found:
        """Generate some tokens of as many texts as there are rows."""
        while self._waiting and self._has_room():
            text = self._waiting.popleft()
            self._begun[self._engine.submit(_keyed(text))] = text
        try:
            found = self._engine.step()
        except RequestError as error:
            traceback.print_exc()
            return [(self._begun.pop(error.number), None)]
        except Exception:  # Whatever the device says: memory, most of the time.
            traceback.print_exc()
            return self._recover()
        return [self._tell(news) for news in found]

    def _has_room(self) -> bool:
        """Whether the first text that waits can be begun; a suspect is generated alone."""
        texts = [self._waiting[0], *self._begun.values()]
        alone = any(text.is_suspect for text in texts)
        return len(self._begun) < (1 if alone else self._rows)

    def _recover(self) -> _Found:
        """Begin anew after a step that failed; return the text that caused it, if that is known."""
        self._engine.reset()
        texts, self._begun = list(self._begun.values()), {}
        if len(texts) == 1:
            return [(texts[0], None)]
        for text in texts:
            text.is_suspect, text.repeats = True, len(text.told)
        self._waiting.extendleft(reversed(texts))
        return []

    def _tell(self, news: News) -> tuple[PendingText, News | None]:
        """Return the news without the tokens that were told before."""
        text = self._begun[news.number]
        ids = [token.id for token in news.tokens]
        again, start = min(text.repeats, len(ids)), len(text.told) - text.repeats
        is_same = ids[:again] == text.told[start : start + again]
        text.repeats -= again
        text.told += ids[again:]
        if news.finish or not is_same:
            self.cancel(text)
        if not is_same or (news.finish and text.repeats):
            return text, None
        if len(ids) > again:
            text.is_suspect = False
        return text, dataclasses.replace(news, tokens=news.tokens[again:])


def _keyed(text: PendingText) -> Request:
    """Return the request for a text with its random key, for which the device may be needed."""
    if text.seed is None or text.request.temperature == 0:
        return text.request
    key = jax.random.fold_in(jax.random.key(text.seed), text.index)
    return dataclasses.replace(text.request, key=key)
