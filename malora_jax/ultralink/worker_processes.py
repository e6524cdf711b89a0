"""Worker processes that apply a function to the items of a stage, so that it uses all CPU cores."""

import asyncio
import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent import futures
from multiprocessing.connection import Connection

from malora_jax.data.file_rows import Row
from malora_jax.ultralink import languages
from malora_jax.ultralink.stage import ItemOutcome

# Number of items that this process handles itself, because processes take seconds to start, in
# which a small input is finished.
_FIRST_ITEMS = 64
# Number of items in progress per worker: one that it processes, and one that waits for it.
ITEMS_PER_WORKER = 2

Process = Callable[[Row], ItemOutcome]


class WorkerProcesses:
    """A function of items, computed by worker processes.

    The workers start when the first items are done. Each has a pipe to this process, and ends when
    the pipe is closed: with this object, with this process, and also if this process is killed.
    """

    def __init__(self, process: Process, workers: int):
        """Store the function; no process is started yet.

        Args:
            process: Function that processes one item. It must be picklable.
            workers: Number of worker processes; 1 = compute in this process.
        """
        self._process = process
        self._workers = workers
        self._num_items = 0
        self._threads: futures.Executor | None = None
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()

    async def __call__(self, row: Row) -> ItemOutcome:
        """Return the outcome of an item.

        Raises:
            UserError: The function raises it.
            OSError: A worker has ended, for example for lack of memory.
        """
        self._num_items += 1
        if self._workers == 1 or self._num_items <= _FIRST_ITEMS:
            return self._process(row)
        if self._threads is None:
            self._start()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._request, row)

    def _start(self) -> None:
        # A forked process could hang, because other threads of this one may hold locks. The fork
        # server has no other threads, and imports the modules once for all workers.
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([type(self._process).__module__])
        own_languages = languages.own_languages()
        for _ in range(self._workers):
            ours, theirs = context.Pipe()
            context.Process(
                target=_serve, args=(theirs, self._process, own_languages), daemon=True
            ).start()
            theirs.close()
            self._idle.put(ours)
        self._threads = futures.ThreadPoolExecutor(self._workers)

    def _request(self, row: Row) -> ItemOutcome:
        """Let an idle worker process an item, and wait for the outcome."""
        worker = self._idle.get_nowait()  # There are as many workers as threads.
        try:
            worker.send(row)
            outcome = worker.recv()
        except (EOFError, ConnectionError) as error:
            raise OSError(
                'A worker process has ended unexpectedly, perhaps for lack of memory: repeat the '
                'command to resume, with a smaller --workers.'
            ) from error
        finally:
            self._idle.put(worker)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _serve(
    connection: Connection, process: Process, own_languages: Sequence[languages.Language]
) -> None:
    """Process items in a worker, until the pipe to the parent process is closed."""
    languages.add(own_languages)
    # In a terminal, Ctrl-C reaches the workers too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            row = connection.recv()
            try:
                outcome: ItemOutcome | Exception = process(row)
            except Exception as error:
                outcome = error
            connection.send(outcome)
    except (EOFError, ConnectionError):
        return
