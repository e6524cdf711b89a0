"""A thread that writes texts, and the event loop that hands them to clients."""

import asyncio
import collections
import threading
import traceback
from collections.abc import Mapping

from malora_jax.inference import LanguageModel
from malora_jax.models.engine import Engine, News, Request


class OverloadedError(Exception):
    """Too many requests wait already."""


class FailedError(Exception):
    """The model failed while it wrote; what was written is lost."""


class Ticket:
    """A request that was taken: what becomes of it comes piece by piece.

    Of the event loop's thread, but for `put`.
    """

    def __init__(self, model: str, request: Request):
        self.model = model
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News | FailedError] = asyncio.Queue()

    def put(self, news: News | FailedError) -> None:
        """Hands over what is new, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def next(self) -> News:
        """What is new next; after one with a `finish` nothing comes.

        Raises:
            FailedError: nothing will come.
        """
        news = await self._news.get()
        if isinstance(news, FailedError):
            raise news
        return news


class Scheduler:
    """Writes the texts of several models, each with an engine of its own, in turns."""

    def __init__(self, models: Mapping[str, LanguageModel], rows: int, most_waiting: int):
        """Makes the engines; nothing is written before `start`.

        Args:
            models: by the names that requests give.
            rows: texts of each model that are written side by side.
            most_waiting: requests that may wait for a row.
        """
        self._models, self._count = models, rows
        self._engines = {name: self._engine(name) for name in models}
        self._most = rows * len(models) + most_waiting
        self._tickets: dict[tuple[str, int], Ticket] = {}
        self._asked: collections.deque[tuple[str, Ticket]] = collections.deque()
        self._open: set[Ticket] = set()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name='writer', daemon=True)

    @property
    def open_requests(self) -> int:
        """Requests that are written or wait."""
        return len(self._open)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it is at, at most a few tokens."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def submit(self, model: str, request: Request) -> Ticket:
        """Takes a request; from the event loop.

        Raises:
            UserError: prompt and answer might not fit into the model's context.
            OverloadedError: too many wait.
        """
        self._engines[model].check_room(len(request.prompt), request.limit)
        with self._wake:
            if len(self._open) >= self._most:
                raise OverloadedError
            ticket = Ticket(model, request)
            self._open.add(ticket)
            self._asked.append(('submit', ticket))
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a request; one that is finished is not there any more."""
        with self._wake:
            if ticket in self._open:
                self._open.discard(ticket)
                self._asked.append(('cancel', ticket))
                self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopped and not self._asked and self._is_idle():
                    self._wake.wait()
                if self._stopped:
                    return
                asked, self._asked = self._asked, collections.deque()
            for what, ticket in asked:
                self._take(what, ticket)
            for name in self._engines:
                self._step(name)

    def _is_idle(self) -> bool:
        return all(engine.is_idle for engine in self._engines.values())

    def _take(self, what: str, ticket: Ticket) -> None:
        engine = self._engines[ticket.model]
        if what == 'submit':
            self._tickets[ticket.model, engine.submit(ticket.request)] = ticket
            return
        for key in [key for key, other in self._tickets.items() if other is ticket]:
            engine.cancel(key[1])
            del self._tickets[key]

    def _step(self, name: str) -> None:
        try:
            found = self._engines[name].step()
        except Exception:  # Whatever the device says: memory, most of the time.
            traceback.print_exc()
            self._fail(name)
            return
        for news in found:
            ticket = self._tickets[name, news.number]
            if news.finish:
                self._forget(name, news.number)
            ticket.put(news)

    def _fail(self, name: str) -> None:
        """Tells everyone who waits for a model, and begins with empty rows."""
        for model, number in list(self._tickets):
            if model == name:
                ticket = self._tickets[model, number]
                self._forget(model, number)
                ticket.put(FailedError())
        self._engines[name] = self._engine(name)

    def _forget(self, name: str, number: int) -> None:
        with self._wake:
            self._open.discard(self._tickets.pop((name, number)))

    def _engine(self, name: str) -> Engine:
        model = self._models[name]
        return Engine(model.model, model.variables, [model.end_id], self._count)
