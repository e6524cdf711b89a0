"""The two processes of a test: the untrusted candidate, and the examiner, which runs the test.

The candidate runs the generated program. A socket connects the processes. Each line to the
candidate holds the arguments of a call, and each line back holds the result, both as plain data. A
candidate can influence the verdict only by its results: it never sees the test, and if it patches
objects, prints text or exits, that affects only its own process.
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

from . import event_loop, serialization

# First line of the examiner's output, once both processes run.
READY = 'ready'
# Verdict of the examiner if the candidate's process has ended.
ENDED = 'the candidate has ended'

# Maximum length of a line from the candidate, in bytes: more than any test needs.
_MAX_LINE_BYTES = 1 << 20


def run_candidate(program: str, function: str, channel: int) -> None:
    """Run a program, then call its function whenever the examiner asks for it.

    The examiner is the process that runs the test. For each call, it sends a line with the
    arguments, and receives a line with the result.

    Args:
        program: Source code that defines the function.
        function: Name of the function.
        channel: Descriptor of the socket to the examiner.
    """
    calls, answers = _open_streams(channel)
    namespace = _new_namespace()

    def load() -> None:
        _execute(program, 'candidate', namespace)
        if function not in namespace:
            raise NameError(f'name {function!r} is not defined')

    # Report that the process runs, before any code of the program runs.
    _send_result(answers, lambda: None)
    _send_result(answers, load)
    for line in calls:
        _send_result(answers, functools.partial(_call, namespace, function, line))


def _call(namespace: dict[str, Any], function: str, line: bytes) -> Any:
    arguments, keywords = serialization.unpack(json.loads(line), _classes(namespace))
    return namespace[function](*arguments, **keywords)


def _new_namespace() -> dict[str, Any]:
    """Return the namespace of a new module, registered in `sys.modules` for pickle and typing."""
    module = types.ModuleType(serialization.PROGRAM)
    sys.modules[serialization.PROGRAM] = module
    return vars(module)


def _execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    if 'asyncio' in source:
        event_loop.install()
    exec(compile(source, name, 'exec'), namespace)


def _classes(namespace: dict[str, Any]) -> dict[str, type]:
    """Return the classes that a program defines, by name, without those that it imports."""
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, type) and value.__module__ == serialization.PROGRAM
    }


def _open_streams(channel: int) -> tuple[BinaryIO, BinaryIO]:
    return open(channel, 'rb', closefd=False), open(channel, 'wb', closefd=False)


def _send_result(answers: BinaryIO, compute: Callable[[], Any]) -> None:
    try:
        line = json.dumps({'result': serialization.pack(compute())})
    except BaseException as error:  # SystemExit counts as a wrong answer, too.
        line = json.dumps({'raised': _describe(error)})
    answers.write(line.encode() + b'\n')
    answers.flush()


def _describe(error: BaseException) -> str:
    if isinstance(error, _CandidateError):
        return str(error)
    return f'{type(error).__name__}: {error}'.removesuffix(': ')[:200]


class _CandidateError(BaseException):
    """The error that ends a test when a call to the candidate's function fails.

    This class does not derive from `Exception`. An `except Exception` in the test therefore does
    not catch it.
    """


class _RemoteCandidate:
    """A candidate in another process, which can be called like a function.

    Attributes:
        classes: Classes that the prompt defines, by name. A result may be an instance of them.
        failure: Reason of the first failure, or None. It is stored so that the test fails even if a
            bare `except` in the test catches the error.
    """

    def __init__(self, channel: int):
        self.classes: dict[str, type] = {}
        self.failure: str | None = None
        self._answers, self._calls = _open_streams(channel)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self._recording_failure():
            line = json.dumps(serialization.pack((arguments, keywords)))
            self._calls.write(line.encode() + b'\n')
            self._calls.flush()
            return self._receive()

    def wait(self) -> None:
        """Wait for the candidate's next report.

        The first report says that its process has started, and the second one that its program has
        been executed, so that the function can be called.
        """
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
        line = self._answers.readline(_MAX_LINE_BYTES)
        if not line:
            raise ConnectionError
        if not line.endswith(b'\n'):
            raise _CandidateError('its answer is too long')
        reply = json.loads(line)
        if 'raised' in reply:
            raise _CandidateError(str(reply['raised'])[:200])
        return serialization.unpack(reply['result'], self.classes)


def run_examiner(prompt: str, test: str, function: str, channel: int) -> None:
    """Run a test on a candidate and print two lines: READY, and the verdict in JSON.

    The verdict is null if the test passed, and otherwise the reason of the failure.

    Args:
        prompt: Prompt of the problem: signature and docstring of the function, with the imports,
            helpers and classes that the test may need.
        test: Source code that defines `check(candidate)`.
        function: Name of the function; the test may also call it by this name.
        channel: Descriptor of the socket to the candidate.
    """
    remote = _RemoteCandidate(channel)
    remote.wait()
    print(READY, flush=True)
    verdict = None
    try:
        # Some tests print text, and some draw random inputs, which must be the same each time.
        random.seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            remote.wait()
            namespace = _new_namespace()
            _execute(prompt, 'prompt', namespace)
            remote.classes = _classes(namespace)
            namespace[function] = remote
            _execute(test, 'test', namespace)
            namespace['check'](remote)
    except BaseException as error:
        verdict = _describe(error)
    print(json.dumps(remote.failure or verdict), flush=True)
