"""How a process ends: SIGTERM, SIGINT, and the death of the process that started it.

A command calls `install` before its slow imports. From then on a thread of its own waits for the
signals, so that they take effect at once even while the main thread compiles a program. The first
signal either ends the process or, within `deferred`, is noted for the code that is about to save.
Later signals change nothing. The process ends by `leave`, which skips the interpreter's finalizers:
these reset the signal handlers, and crash where a computation outlives them.

A program that uses the library keeps its own handlers, except within `watched`.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# Last line of a command that SIGTERM has ended with status 0.
SAVED = 'Stopped by SIGTERM; the same command resumes from what was saved.'
# Statuses as shells show them: 128 + the signal's number.
_STOPPED, _INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
# Names the descriptor of the pipe whose other end only the parent process holds.
_PARENT = 'MALORA_JAX_PARENT'
# In the listener's pipe, between the numbers of signals.
_MARK = b'\0'
# Seconds to wait for a reader of the last message.
_PATIENCE = 10.0


class Preempted(SystemExit):
    """SIGTERM came and the work is saved: exit status 0."""

    def __init__(self):
        super().__init__(0)


class _State:
    """What signals of this process do.

    Attributes:
        lock: Guards the other fields; `leave` never releases it.
        is_command: Whether `install` was called.
        is_resumable: Whether the command continues from what it saved when it is run again.
        deferred: Signals that are only noted.
        requested: Signal that asked the process to end; 0 if none has.
        cleanups: Functions that `leave` calls.
        wakeup: Descriptor through which signals reach the listener.
        caught_up: Set when the listener has read the mark that `interruptible` wrote.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.is_command = self.is_resumable = False
        self.deferred: tuple[int, ...] = ()
        self.requested = 0
        self.cleanups: list[Callable[[], None]] = []
        self.wakeup = -1
        self.caught_up = threading.Event()


_state = _State()


def install(is_resumable: bool) -> None:
    """Handles SIGTERM, SIGINT and the parent's death until the process ends.

    Args:
        is_resumable: Whether the command continues from what it saved when it is run again. If
            so, SIGTERM means status 0, otherwise 143.
    """
    _state.is_command, _state.is_resumable = True, is_resumable
    reading, _state.wakeup = os.pipe()
    os.set_blocking(_state.wakeup, False)
    # Before the handlers: a signal that comes in between is not lost.
    signal.set_wakeup_fd(_state.wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _wake)
    # A shell starts background jobs with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _wake)
    os.register_at_fork(after_in_child=_uninstall)
    sources = [reading]
    if _PARENT in os.environ:
        sources.append(int(os.environ.pop(_PARENT)))
    threading.Thread(target=_listen, args=sources, name='signals', daemon=True).start()


@contextlib.contextmanager
def deferred(*numbers: int) -> Iterator[None]:
    """Within it, these signals do nothing but change what `requested` returns."""
    before = _state.deferred
    with _state.lock:
        _state.deferred = numbers
    try:
        yield
    finally:
        with _state.lock:
            _state.deferred = before


def requested() -> int:
    """Returns the deferred signal that asked the process to end; 0 if none has."""
    return _state.requested


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Handles SIGTERM in a program that is not a command; there it raises `Preempted`.

    Only the main thread of a process can receive signals; in other threads this does nothing.
    """
    if _state.is_command or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: _stop(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _state.requested = 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, Ctrl-C raises KeyboardInterrupt in a command, too."""
    if signal.getsignal(signal.SIGINT) is not _wake:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        try:
            # The listener must not take a signal that was caught here for one that comes later.
            _state.caught_up.clear()
            os.write(_state.wakeup, _MARK)
            _state.caught_up.wait()
        finally:
            signal.signal(signal.SIGINT, _wake)


@contextlib.contextmanager
def lifeline() -> Iterator[tuple[int, dict[str, str]]]:
    """Lets child processes notice when this process ends, however it does.

    Yields:
        A descriptor for the children to inherit, and their additional environment variables. A
        child that is a command stops as by SIGTERM when the other end of the pipe is closed.
    """
    reading, writing = os.pipe()
    try:
        yield reading, {_PARENT: str(reading)}
    finally:
        os.close(reading)
        os.close(writing)


def at_end(cleanup: Callable[[], None]) -> None:
    """Has `leave` call a function, which may run in any thread."""
    _state.cleanups.append(cleanup)


def leave(status: int, message: str = '') -> NoReturn:
    """Ends the process; no signal that comes from here on changes its status.

    Args:
        status: Exit status.
        message: Last line of stdout, or of stderr if the status is not 0.
    """
    _state.lock.acquire()
    for cleanup in _state.cleanups:
        with contextlib.suppress(OSError):
            cleanup()
    if message:
        _say(message, 2 if status else 1)
    os._exit(status)


def leave_by(number: int) -> NoReturn:
    """Ends the process as a signal does that is not deferred."""
    start = '\n' if os.isatty(2) else ''  # A progress bar may stand in the line.
    if number == signal.SIGINT:
        again = 'resumes from what was saved' if _state.is_resumable else 'starts again'
        leave(_INTERRUPTED, f'{start}Interrupted; the same command {again}.')
    if _state.is_resumable:
        leave(0, start + SAVED)
    leave(_STOPPED, f'{start}Stopped by SIGTERM; the same command starts again.')


def _stop(number: int) -> None:
    """Acts on a signal, unless another came before."""
    with _state.lock:
        if _state.requested:
            return
        _state.requested = number
        if number in _state.deferred:
            return
        if _state.is_command:
            leave_by(number)
        _say(SAVED, 1)
        raise Preempted


def _listen(signals: int, *parent: int) -> None:
    """Waits for signals and for the end of the parent process."""
    sources = [signals, *parent]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if signals in ready:
            for number in os.read(signals, 64):
                if number == _MARK[0]:
                    _state.caught_up.set()
                # Whoever installs another handler acts on the signal itself.
                elif signal.getsignal(number) is _wake:
                    _stop(number)
        else:
            sources = [signals]
            _say('The process that started this one has ended.', 1)
            _stop(signal.SIGTERM)


def _wake(*_: Any) -> None:
    """Does nothing: the interpreter has already written the signal to the listener's pipe."""


def _uninstall() -> None:
    """Gives a forked child, which has no listener, the usual handlers."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _wake:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(message: str, descriptor: int) -> None:
    # Not by print: the main thread may be in the middle of one, and hold its lock.
    with contextlib.suppress(OSError):
        if select.select([], [descriptor], [], _PATIENCE)[1]:
            # Arguments of a command may hold bytes that are no UTF-8.
            os.write(descriptor, f'{message}\n'.encode(errors='backslashreplace'))
