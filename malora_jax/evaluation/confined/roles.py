"""The two ends of a test: the candidate, which nobody trusts, and the examiner with the test.

They are two processes with a socket between them. A line to the candidate holds the arguments of
a call, a line back its result, both as plain data. All that a candidate can do to the verdict is to
give answers: it never sees the test, and what it patches, prints or ends is its own process.
"""

import contextlib
import io
import json
import random
from collections.abc import Callable
from typing import Any, BinaryIO

from . import values

# What the examiner prints once both processes run, and its verdict when the other has ended.
READY = 'ready'
ENDED = 'the candidate has ended'

# Longest line from a candidate, in bytes: more than any test needs.
_LONGEST = 1 << 20


def candidate(program: str, function: str, channel: int) -> None:
    """Runs a program, then calls its function as often as it is asked to.

    Args:
        program: source code that defines the function.
        function: its name.
        channel: descriptor of the socket to the examiner.
    """
    calls, answers = _open(channel)
    namespace: dict[str, Any] = {'__name__': 'candidate'}

    def load() -> None:
        exec(compile(program, 'candidate', 'exec'), namespace)
        if function not in namespace:
            raise NameError(f'name {function!r} is not defined')

    _answer(answers, lambda: None)  # It runs, and nothing of the program has run yet.
    _answer(answers, load)
    for line in calls:
        arguments, keywords = values.unpack(json.loads(line))
        _answer(answers, namespace[function], *arguments, **keywords)


def _open(channel: int) -> tuple[BinaryIO, BinaryIO]:
    return open(channel, 'rb', closefd=False), open(channel, 'wb', closefd=False)


def _answer(
    answers: BinaryIO, compute: Callable[..., Any], /, *arguments: Any, **keywords: Any
) -> None:
    try:
        line = json.dumps({'result': values.pack(compute(*arguments, **keywords))})
    except BaseException as error:  # SystemExit is a wrong answer like any other.
        line = json.dumps({'raised': _describe(error)})
    answers.write(line.encode() + b'\n')
    answers.flush()


def _describe(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.removesuffix(': ')[:200]


class _CandidateError(BaseException):
    """The candidate gave no result; a test that catches exceptions cannot mistake it for one."""


class _Remote:
    """A candidate in another process, called like a function."""

    def __init__(self, channel: int):
        self._answers, self._calls = _open(channel)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        line = json.dumps(values.pack((arguments, keywords)))
        try:
            self._calls.write(line.encode() + b'\n')
            self._calls.flush()
            return self.receive()
        except ConnectionError as error:
            raise _CandidateError(ENDED) from error

    def receive(self) -> Any:
        line = self._answers.readline(_LONGEST)
        if not line.endswith(b'\n'):
            raise _CandidateError('its answer is too long' if line else ENDED)
        reply = json.loads(line)
        if 'raised' in reply:
            raise _CandidateError(str(reply['raised'])[:200])
        return values.unpack(reply['result'])


def examiner(prompt: str, test: str, function: str, channel: int) -> None:
    """Runs a test on a candidate and prints two lines: READY, and the verdict in JSON.

    The verdict is null if the test passed, or else a text that says why not.

    Args:
        prompt: the head of the function, with what the test may need of its imports and helpers.
        test: source code that defines `check(candidate)`.
        function: name of the function, by which the test may call it too.
        channel: descriptor of the socket to the candidate.
    """
    remote = _Remote(channel)
    remote.receive()
    print(READY, flush=True)
    try:
        # Tests may print, and some draw their questions: the same ones each time.
        random.seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            remote.receive()
            namespace: dict[str, Any] = {'__name__': 'test'}
            exec(compile(prompt, 'prompt', 'exec'), namespace)
            namespace[function] = remote
            exec(compile(test, 'test', 'exec'), namespace)
            namespace['check'](remote)
        verdict = None
    except _CandidateError as error:
        verdict = str(error)
    except BaseException as error:
        verdict = _describe(error)
    print(json.dumps(verdict), flush=True)
