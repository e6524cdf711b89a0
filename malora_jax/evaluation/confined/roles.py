"""The two ends of a test: the candidate, which nobody trusts, and the examiner with the test.

They are two processes with a socket between them. A line to the candidate holds the arguments of
a call, and a line back holds its result, both as plain data. Answers are all that a candidate can
contribute to the verdict: it never sees the test, and what it patches, prints or ends is its own
process.
"""

import contextlib
import functools
import io
import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from . import event_loop, values

# What the examiner prints once both processes run, and its verdict when the other has ended.
READY = 'ready'
ENDED = 'the candidate has ended'

# Longest line from a candidate, in bytes: more than any test needs.
_LONGEST = 1 << 20


def candidate(program: str, function: str, channel: int) -> None:
    """Run a program, then call its function as often as the examiner asks.

    Args:
        program: Source code that defines the function.
        function: Name of the function.
        channel: Descriptor of the socket to the examiner.
    """
    calls, answers = _open(channel)
    namespace = _new_program()

    def load() -> None:
        _run(program, 'candidate', namespace)
        if function not in namespace:
            raise NameError(f'name {function!r} is not defined')

    _answer(answers, lambda: None)  # The process runs, and nothing of the program has run yet.
    _answer(answers, load)
    for line in calls:
        _answer(answers, functools.partial(_call, namespace, function, line))


def _call(namespace: dict[str, Any], function: str, line: bytes) -> Any:
    arguments, keywords = values.unpack(json.loads(line), _classes(namespace))
    return namespace[function](*arguments, **keywords)


def _new_program() -> dict[str, Any]:
    """Return the namespace of a module, which pickle and typing find by its name."""
    module = types.ModuleType(values.PROGRAM)
    sys.modules[values.PROGRAM] = module
    return vars(module)


def _run(source: str, name: str, namespace: dict[str, Any]) -> None:
    if 'asyncio' in source:
        event_loop.install()
    exec(compile(source, name, 'exec'), namespace)


def _classes(namespace: dict[str, Any]) -> dict[str, type]:
    """Return the classes that a program defines, without those that it imports."""
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, type) and value.__module__ == values.PROGRAM
    }


def _open(channel: int) -> tuple[BinaryIO, BinaryIO]:
    return open(channel, 'rb', closefd=False), open(channel, 'wb', closefd=False)


def _answer(answers: BinaryIO, compute: Callable[[], Any]) -> None:
    try:
        line = json.dumps({'result': values.pack(compute())})
    except BaseException as error:  # SystemExit is a wrong answer like any other.
        line = json.dumps({'raised': _describe(error)})
    answers.write(line.encode() + b'\n')
    answers.flush()


def _describe(error: BaseException) -> str:
    if isinstance(error, _CandidateError):
        return str(error)
    return f'{type(error).__name__}: {error}'.removesuffix(': ')[:200]


class _CandidateError(BaseException):
    """The candidate gave no result. Not an `Exception`, so that it ends most tests at once."""


class _Remote:
    """A candidate in another process, called like a function.

    Attributes:
        classes: Classes by name of which results may be instances.
        failure: Why the first call without a result has none, or None. A test that catches
            everything, even by a bare `except`, must not pass without a result.
    """

    def __init__(self, channel: int):
        self.classes: dict[str, type] = {}
        self.failure: str | None = None
        self._answers, self._calls = _open(channel)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self._recording_failure():
            line = json.dumps(values.pack((arguments, keywords)))
            self._calls.write(line.encode() + b'\n')
            self._calls.flush()
            return self._receive()

    def wait(self) -> None:
        """Wait until the candidate has done its next step."""
        with self._recording_failure():
            self._receive()

    @contextlib.contextmanager
    def _recording_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            reason = ENDED if isinstance(error, ConnectionError) else _describe(error)
            self.failure = self.failure or reason
            raise _CandidateError(reason) from error

    def _receive(self) -> Any:
        line = self._answers.readline(_LONGEST)
        if not line:
            raise ConnectionError
        if not line.endswith(b'\n'):
            raise _CandidateError('its answer is too long')
        reply = json.loads(line)
        if 'raised' in reply:
            raise _CandidateError(str(reply['raised'])[:200])
        return values.unpack(reply['result'], self.classes)


def examiner(prompt: str, test: str, function: str, channel: int) -> None:
    """Run a test on a candidate and print two lines: READY, and the verdict in JSON.

    The verdict is null if the test passed, and otherwise a text that says why not.

    Args:
        prompt: Head of the function, with the imports, helpers and classes that the test may need.
        test: Source code that defines `check(candidate)`.
        function: Name of the function, by which the test may call it too.
        channel: Descriptor of the socket to the candidate.
    """
    remote = _Remote(channel)
    remote.wait()
    print(READY, flush=True)
    verdict = None
    try:
        # Tests may print, and some draw their questions: the same ones each time.
        random.seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            remote.wait()
            namespace = _new_program()
            _run(prompt, 'prompt', namespace)
            remote.classes = _classes(namespace)
            namespace[function] = remote
            _run(test, 'test', namespace)
            namespace['check'](remote)
    except BaseException as error:
        verdict = _describe(error)
    print(json.dumps(remote.failure or verdict), flush=True)
