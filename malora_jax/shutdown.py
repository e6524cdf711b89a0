"""Shutdown of a process on SIGTERM, on SIGINT, or when its parent process dies.

A command calls `install_handlers` before its slow imports. From then on a separate thread waits for
signals, so that they take effect at once, even while the main thread compiles a program. The first
signal ends the process or, within `defer_signals`, is recorded for the code that saves a
checkpoint. Later signals are ignored. The process ends by `exit_process`, which skips the
interpreter's finalizers, because they reset the signal handlers and crash if a computation is still
running.

A program that uses the library keeps its own handlers, except within `raise_on_sigterm`.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# Last line of output of a command that ends with status 0 after SIGTERM.
SAVED_MESSAGE = 'Stopped by SIGTERM; the same command resumes from what was saved.'
# Exit statuses by the convention of shells: 128 + the signal's number.
_SIGTERM_STATUS, _SIGINT_STATUS = 128 + signal.SIGTERM, 128 + signal.SIGINT
# Environment variable with the descriptor of a pipe whose other end only the parent process holds.
_PARENT_PIPE_VARIABLE = 'MALORA_JAX_PARENT'
# Marker that `interruptible` writes to the listener's pipe, which otherwise holds signal numbers.
_MARK = b'\0'
# Maximum time in seconds to wait until the last message can be written.
_WRITE_TIMEOUT_S = 10.0


class Preempted(SystemExit):
    """The exception that ends the process with status 0 after SIGTERM, once progress is saved.

    Example:
        try:
            training.train(config, workdir)
        except Preempted:
            print(f'The progress is saved in {workdir}.')
            raise
    """

    def __init__(self):
        super().__init__(0)


class _State:
    """State of this process's signal handling.

    Attributes:
        lock: Lock for the other fields. `exit_process` acquires it and never releases it, so that
            no other thread acts on a later signal.
        is_command: Whether `install_handlers` was called.
        is_resumable: Whether a second run of the same command resumes from the saved progress.
        deferred_signals: Signals that are only recorded, in `requested_signal`.
        requested_signal: Signal that asked the process to end; 0 = none yet.
        cleanups: Functions that `exit_process` calls.
        wakeup: Write end of the pipe through which signals reach the listener, the thread that
            acts on them.
        caught_up: Event that the listener sets when it has read a mark from this pipe, and thus all
            earlier signals. `interruptible` writes the mark and waits for the event.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.is_command = self.is_resumable = False
        self.deferred_signals: tuple[int, ...] = ()
        self.requested_signal = 0
        self.cleanups: list[Callable[[], None]] = []
        self.wakeup = -1
        self.caught_up = threading.Event()


_state = _State()


def install_handlers(is_resumable: bool) -> None:
    """Handle SIGTERM, SIGINT and the parent's death until the process ends.

    Args:
        is_resumable: Whether a second run of the same command resumes from the saved progress. If
            so, the exit status after SIGTERM is 0, otherwise 143.
    """
    _state.is_command, _state.is_resumable = True, is_resumable
    reading, _state.wakeup = os.pipe()
    os.set_blocking(_state.wakeup, False)
    # Set this before the handlers, so that no signal in between is lost.
    signal.set_wakeup_fd(_state.wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _handled_by_listener)
    # A shell starts background jobs with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handled_by_listener)
    os.register_at_fork(after_in_child=_uninstall)
    sources = [reading]
    if _PARENT_PIPE_VARIABLE in os.environ:
        sources.append(int(os.environ.pop(_PARENT_PIPE_VARIABLE)))
    threading.Thread(target=_listen, args=sources, name='signals', daemon=True).start()


@contextlib.contextmanager
def defer_signals(*numbers: int) -> Iterator[None]:
    """Defer signals: within the block, a signal only sets the result of `requested_signal`.

    Args:
        *numbers: Numbers of the signals.
    """
    before = _state.deferred_signals
    with _state.lock:
        _state.deferred_signals = numbers
    try:
        yield
    finally:
        with _state.lock:
            _state.deferred_signals = before


def requested_signal() -> int:
    """Return the number of the deferred signal that asked the process to end; 0 if none has."""
    return _state.requested_signal


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Preempted` on SIGTERM within the block, in a program that uses the library.

    In a command this does nothing, because `install_handlers` handles the signal. It also does
    nothing outside the main thread, because only the main thread can handle signals.
    """
    if _state.is_command or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: _handle_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _state.requested_signal = 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt within the block, even after `install_handlers`."""
    if signal.getsignal(signal.SIGINT) is not _handled_by_listener:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        try:
            # Wait until the listener has skipped the signals that were handled in the block, so
            # that it does not act on them afterwards.
            _state.caught_up.clear()
            os.write(_state.wakeup, _MARK)
            _state.caught_up.wait()
        finally:
            signal.signal(signal.SIGINT, _handled_by_listener)


@contextlib.contextmanager
def parent_pipe() -> Iterator[tuple[int, dict[str, str]]]:
    """Let child processes detect the end of this process, even if it is killed.

    Yields:
        A file descriptor that the children must inherit, and environment variables that they must
        get. When this process ends or leaves the block, a child that has called `install_handlers`
        behaves as if it had received SIGTERM.
    """
    reading, writing = os.pipe()
    try:
        yield reading, {_PARENT_PIPE_VARIABLE: str(reading)}
    finally:
        os.close(reading)
        os.close(writing)


def register_cleanup(cleanup: Callable[[], None]) -> None:
    """Register a function that `exit_process` calls, possibly in another thread."""
    _state.cleanups.append(cleanup)


def say(message: str, descriptor: int) -> None:
    """Print a line, also from another thread, as a cleanup may have to.

    Args:
        message: Line to print.
        descriptor: File descriptor, 1 or 2.
    """
    # Do not use print, because the main thread may hold the lock of the stream.
    with contextlib.suppress(OSError):
        if select.select([], [descriptor], [], _WRITE_TIMEOUT_S)[1]:
            # Arguments of a command may contain bytes that are not UTF-8.
            os.write(descriptor, f'{message}\n'.encode(errors='backslashreplace'))


def exit_process(status: int, message: str = '') -> NoReturn:
    """Run the cleanups and end the process; later signals do not change its exit status.

    Args:
        status: Exit status.
        message: Last line of stdout, or of stderr if the status is not 0.
    """
    _state.lock.acquire()
    for cleanup in _state.cleanups:
        with contextlib.suppress(OSError):
            cleanup()
    if message:
        say(message, 2 if status else 1)
    os._exit(status)


def exit_by_signal(number: int) -> NoReturn:
    """End a command after SIGINT or SIGTERM, with the exit status and message for that signal.

    Args:
        number: Number of the signal, SIGINT or SIGTERM.
    """
    start = '\n' if os.isatty(2) else ''  # A progress bar may be on the current line.
    if number == signal.SIGINT:
        again = 'resumes from what was saved' if _state.is_resumable else 'starts again'
        exit_process(_SIGINT_STATUS, f'{start}Interrupted; the same command {again}.')
    if _state.is_resumable:
        exit_process(0, start + SAVED_MESSAGE)
    exit_process(_SIGTERM_STATUS, f'{start}Stopped by SIGTERM; the same command starts again.')


def _handle_signal(number: int) -> None:
    """Act on a signal, unless an earlier one has asked the process to end.

    Raises:
        Preempted: The signal is not deferred, and the process is a program that uses the library.
            (A command, which has called `install_handlers`, ends without this exception.)
    """
    with _state.lock:
        if _state.requested_signal:
            return
        _state.requested_signal = number
        if number in _state.deferred_signals:
            return
        if _state.is_command:
            exit_by_signal(number)
        say(SAVED_MESSAGE, 1)
        raise Preempted


def _listen(signals: int, *parent: int) -> None:
    """Wait for signals and for the end of the parent process, and act on them.

    Args:
        signals: Descriptor from which signal numbers are read.
        *parent: Descriptor of the parent's pipe, if there is one.
    """
    sources = [signals, *parent]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if signals in ready:
            for number in os.read(signals, 64):
                if number == _MARK[0]:
                    _state.caught_up.set()
                # Another handler, if one is installed, acts on the signal itself.
                elif signal.getsignal(number) is _handled_by_listener:
                    _handle_signal(number)
        else:
            sources = [signals]
            say('The process that started this one has ended.', 1)
            _handle_signal(signal.SIGTERM)


def _handled_by_listener(*_: Any) -> None:
    """Do nothing, because the interpreter has written the signal to the listener's pipe."""


def _uninstall() -> None:
    """Restore the default handlers in a forked child, which has no listener thread."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _handled_by_listener:
        signal.signal(signal.SIGINT, signal.default_int_handler)
