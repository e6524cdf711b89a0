"""Execution-based scoring of generated code on HumanEval, and pass@k (Chen et al. 2021).

The generated program (the candidate) and its test run in two confined processes; see `sandbox` and
`confined.roles`.
"""

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import textwrap
from collections.abc import Callable, Sequence
from concurrent import futures

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.confined import roles

# Start of the code after a completed function, as in UltraEval. A code fence also ends a function,
# because the function may be in a fenced block.
_FUNCTION_END = re.compile(r'\n(?:class|def|#|@|print|if|```)')
_FENCED = re.compile(r'^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)', re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of the HumanEval benchmark.

    Attributes:
        prompt: Source code up to the function's body: imports, helpers, signature and docstring.
        test: Source code that defines `check(candidate)`.
        entry_point: Name of the function.
    """

    prompt: str
    test: str
    entry_point: str


@dataclasses.dataclass(frozen=True)
class CompletionOutcome:
    """The test result of a completion.

    Attributes:
        passed: Whether the completion passes the test.
        reason: Reason of the failure; '' if it passes.
    """

    passed: bool
    reason: str = ''


def run_test(
    problem: Problem, completion: str, limits: sandbox.ResourceLimits | None = None
) -> CompletionOutcome:
    """Run the test of a problem on a completion.

    The prompt and the completion together are the candidate: a program, which runs in one process.
    The test runs in a second process, and calls the candidate's function in the first one. The
    candidate can import only the standard library, and its output is discarded.

    Arguments and results are sent between the two processes as plain data. An instance of a class
    that the prompt defines arrives as an instance of that class. An instance of a class that only
    the candidate defines arrives without the class, as plain data. A candidate therefore cannot
    return an object whose `__eq__` makes every comparison in the test true.

    A call without a result fails the test, even if the test catches exceptions. A call has no
    result if it raises an exception, exits, or returns something other than plain data. The test
    cannot detect that a candidate changes its arguments. No test of HumanEval expects an exception
    or such a change.

    Args:
        problem: Problem with the test.
        completion: Rest of the program, after the prompt; `completion_from_text` and
            `completion_from_chat` extract it from generated text.
        limits: Resource limits of the candidate, and of the test; None = the defaults.

    Raises:
        UserError: Generated code would run as root without the seccomp filter.
        OSError: The sandbox does not work on this system.
    """
    limits = limits or sandbox.ResourceLimits()
    name = problem.entry_point
    program = {'program': problem.prompt + completion, 'function': name}
    test = {'prompt': problem.prompt, 'test': problem.test, 'function': name}
    left, right = socket.socketpair()
    with (
        left,
        right,
        sandbox.confined_process('candidate', program, limits, left.fileno()) as candidate,
        sandbox.confined_process(
            'examiner', test, limits, right.fileno(), subprocess.PIPE
        ) as examiner,
    ):
        # Close both ends here, so that each process reads end-of-file when the other one ends.
        left.close()
        right.close()
        try:
            output, _ = examiner.communicate(timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired as timeout:
            output = timeout.output or b''
    ready, _, verdict = output.decode().partition('\n')
    if ready != roles.READY:
        status = (
            f'candidate exit status {candidate.returncode}, '
            f'examiner exit status {examiner.returncode}'
        )
        raise OSError(f'The sandbox did not start within {limits.wall_seconds} s ({status}).')
    if not verdict:
        return CompletionOutcome(False, 'no verdict in time')
    reason = json.loads(verdict)
    if reason == roles.ENDED:
        reason += f' ({_how_ended(candidate.returncode)})'
    return CompletionOutcome(reason is None, reason or '')


def _how_ended(status: int) -> str:
    if status == -signal.SIGXCPU:
        return 'out of processor time'
    return f'{signal.strsignal(-status)}' if status < 0 else f'with status {status}'


def score_completions(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    limits: sandbox.ResourceLimits | None = None,
    workers: int = os.cpu_count() or 1,
    advance: Callable[[int], object] | None = None,
) -> list[list[CompletionOutcome]]:
    """Run the tests of many completions in parallel.

    Args:
        problems: HumanEval problems.
        completions: Completions of each problem.
        limits: Resource limits of each candidate, and of each test; None = the defaults.
        workers: Number of candidates that run at the same time.
        advance: Function that shows the progress. It is called after each completion, with 1.

    Returns:
        The outcome of each completion, by problem, in the order of `completions`.

    Raises:
        UserError: Generated code would run as root without the seccomp filter.
        OSError: The sandbox does not work on this system.
    """
    sandbox.probe_protections()  # Raise errors here rather than in a worker thread.
    jobs = [(p, c) for p, group in zip(problems, completions, strict=True) for c in group]
    with futures.ThreadPoolExecutor(workers) as pool:
        outcomes = []
        for outcome in pool.map(lambda job: run_test(job[0], job[1], limits), jobs):
            outcomes.append(outcome)
            if advance:
                advance(1)
    in_order = iter(outcomes)
    return [list(itertools.islice(in_order, len(group))) for group in completions]


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k for one problem (Chen et al. 2021, equation 1).

    pass@k is the probability that at least one of k samples is right.

    Args:
        num_samples: Number n of completions sampled for the problem.
        num_passed: Number c of completions that pass.
        k: Number of attempts, 1 to n.

    Returns:
        1 - C(n - c, k) / C(n, k).

    Raises:
        UserError: k is not from 1 to n.
    """
    if not 1 <= k <= num_samples:
        raise UserError(
            f'pass@{k} of {num_samples} samples is not defined: k must be 1 to {num_samples}.'
        )
    return 1 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def completion_from_text(problem: Problem, text: str) -> str:
    """Return the completion in a text that continues the prompt, cut where the function ends.

    The white space at the start of the text is unreliable: the model may have seen the prompt
    without its trailing white space, as in UltraEval, and decoding may have dropped a space. It is
    therefore replaced by a new line and the indentation of the docstring. If the text repeats the
    function's signature, its white space is kept, and a new line is put in front of the text.

    Args:
        problem: Problem that the prompt was made from.
        text: Generated text.
    """
    code = _FUNCTION_END.split(text, maxsplit=1)[0]
    if _defines(problem, code):
        return f'\n{code}'
    return f'\n{_indentation(problem)}{code.lstrip()}'


def completion_from_chat(problem: Problem, answer: str) -> str:
    """Return the completion in a chat answer: a fenced code block, or else the whole answer.

    The completion is the first block that defines the function. When the program runs, this
    definition replaces the unfinished one in the prompt. If no block defines the function, the
    first block is taken as the function's body.

    Args:
        problem: Problem that the prompt was made from.
        answer: Generated answer.
    """
    blocks = [textwrap.dedent(block) for block in _FENCED.findall(answer) or [answer]]
    for block in blocks:
        if _defines(problem, block):
            return f'\n{block}'
    return f'\n{textwrap.indent(blocks[0], _indentation(problem))}'


def _defines(problem: Problem, code: str) -> bool:
    return re.search(rf'^def +{re.escape(problem.entry_point)}\b', code, re.MULTILINE) is not None


def _indentation(problem: Problem) -> str:
    *_, last = problem.prompt.rstrip().splitlines()
    return last[: len(last) - len(last.lstrip())]
