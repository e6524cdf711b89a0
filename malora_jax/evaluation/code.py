"""HumanEval: does a completed function pass its test, and pass@k (Chen et al. 2021).

The candidate and the test run in two confined processes, see `sandbox` and `confined.roles`.
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
from collections.abc import Sequence
from concurrent import futures

import tqdm

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.confined import roles

# Where a completed function ends, as UltraEval has it; a fence may have been opened before.
_NEXT = re.compile(r'\n(?:class|def|#|@|print|if|```)')
_FENCED = re.compile(r'^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)', re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of HumanEval.

    Attributes:
        prompt: the head of the function with its docstring, and what comes before it.
        test: source code that defines `check(candidate)`.
        entry_point: the function's name.
    """

    prompt: str
    test: str
    entry_point: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Whether a completion passes, and if not, why."""

    passed: bool
    reason: str = ''


def humaneval_passes(
    problem: Problem, completion: str, limits: sandbox.Limits | None = None
) -> Outcome:
    """Run the test of a problem on a completion.

    The candidate has the standard library only, and what it prints is lost. Arguments and results
    travel as plain data. An instance of a class that the prompt defines arrives as one; of other
    instances only the attributes arrive, so that no class of the candidate decides a comparison.

    A call without a result fails the test, whatever the test catches: an exception, an exit, or a
    result of another kind. The test does not see that a candidate changes its arguments. No test of
    HumanEval expects an exception or a change.

    Args:
        problem: Problem with the test.
        completion: Rest of the program, after the prompt; `cut_completion` and `chat_completion`
            make it from what a model writes.
        limits: Limits of the candidate, and of the test.

    Raises:
        UserError, OSError: The sandbox does not work, see `sandbox.protections`.
    """
    limits = limits or sandbox.Limits()
    name = problem.entry_point
    program = {'program': problem.prompt + completion, 'function': name}
    test = {'prompt': problem.prompt, 'test': problem.test, 'function': name}
    left, right = socket.socketpair()
    with (
        left,
        right,
        sandbox.confined('candidate', program, limits, left.fileno()) as candidate,
        sandbox.confined('examiner', test, limits, right.fileno(), subprocess.PIPE) as examiner,
    ):
        # Held by nobody else, each end tells when the other process has ended.
        left.close()
        right.close()
        try:
            output, _ = examiner.communicate(timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired as timeout:
            output = timeout.output or b''
    ready, _, verdict = output.decode().partition('\n')
    if ready != roles.READY:
        status = f'status {candidate.returncode} and {examiner.returncode}'
        raise OSError(f'The sandbox did not start within {limits.wall_seconds} s ({status}).')
    if not verdict:
        return Outcome(False, 'no verdict in time')
    reason = json.loads(verdict)
    if reason == roles.ENDED:
        reason += f' ({_how_ended(candidate.returncode)})'
    return Outcome(reason is None, reason or '')


def _how_ended(status: int) -> str:
    if status == -signal.SIGXCPU:
        return 'out of processor time'
    return f'{signal.strsignal(-status)}' if status < 0 else f'with status {status}'


def score_completions(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    limits: sandbox.Limits | None = None,
    workers: int = os.cpu_count() or 1,
) -> list[list[Outcome]]:
    """Runs the tests of many completions, several at once.

    Args:
        problems: the problems.
        completions: for each problem, its completions.
        limits: of each candidate, and of each test.
        workers: how many candidates run at once.

    Returns:
        For each problem, the outcomes of its completions.

    Raises:
        UserError, OSError: the sandbox does not work, see `sandbox.protections`.
    """
    sandbox.protections()  # Fails here rather than in a thread.
    jobs = [(p, c) for p, group in zip(problems, completions, strict=True) for c in group]
    bar = tqdm.tqdm(total=len(jobs), desc='HumanEval', unit='completion', dynamic_ncols=True)
    with bar, futures.ThreadPoolExecutor(workers) as pool:
        outcomes = []
        for outcome in pool.map(lambda job: humaneval_passes(job[0], job[1], limits), jobs):
            outcomes.append(outcome)
            bar.update()
    in_order = iter(outcomes)
    return [list(itertools.islice(in_order, len(group))) for group in completions]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k samples is right (Chen et al. 2021, equation 1), without bias.

    Args:
        samples: how many completions were sampled for a problem, n.
        right: how many of them pass, c.
        k: how many one may try, 1 to n.

    Returns:
        1 - C(n - c, k) / C(n, k).

    Raises:
        UserError: there are fewer samples than that.
    """
    if not 1 <= k <= samples:
        raise UserError(f'pass@{k} of {samples} samples is not defined: k must be 1 to {samples}.')
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def cut_completion(problem: Problem, text: str) -> str:
    """The completion in what a model wrote on after the prompt: it ends where the function does.

    The prompt may have been shown without the white space at its end, as UltraEval does, and a
    decoder may have dropped a space. So the text begins a new line with the docstring's
    indentation, whatever white space it brings; a text that starts with the function's head anew
    begins one without.
    """
    code = _NEXT.split(text, maxsplit=1)[0]
    if _defines(problem, code):
        return f'\n{code}'
    return f'\n{_indentation(problem)}{code.lstrip()}'


def chat_completion(problem: Problem, answer: str) -> str:
    """The completion in a chat's answer: a fenced block, or all of an answer without any.

    It is the first block that defines the function, which then takes the place of the prompt's
    head, or else the first block, as the body.
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
