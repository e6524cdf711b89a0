import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code_execution import (
    CompletionOutcome,
    Problem,
    completion_from_chat,
    completion_from_text,
    pass_at_k,
    run_test,
    score_completions,
)

try:
    sandbox.probe_protections()
except UserError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

# Problems in HumanEval's format; the second test uses a helper and the function's own name.
MEAN = Problem(
    'from typing import List\n\n\ndef mean(numbers: List[float]) -> float:\n'
    '    """ The mean.\n    >>> mean([1.0, 2.0])\n    1.5\n    """\n',
    '\n\nMETADATA = {}\n\n\ndef check(candidate):\n'
    '    assert abs(candidate([1.0, 2.0]) - 1.5) < 1e-6\n    assert candidate([3.0]) == 3.0\n',
    'mean',
)
DECODE = Problem(
    'def encode(s: str):\n    """Turns a text round."""\n    return s[::-1]\n\n\n'
    'def decode(s: str):\n    """Undoes encode."""\n',
    'def check(candidate):\n    from random import choice\n\n    for _ in range(5):\n'
    "        s = ''.join(choice('abc') for i in range(9))\n"
    '        assert candidate(encode(s)) == s\n        assert decode(s) == encode(s)\n',
    'decode',
)


def problem(prompt: str = 'def f(x):\n    """f."""\n', test: str = 'pass') -> Problem:
    return Problem(prompt, f'def check(candidate):\n    {test}\n', 'f')


def test_right_completions_pass_and_wrong_ones_fail():
    outcomes = score_completions(
        [MEAN, DECODE],
        [
            ['    return sum(numbers) / len(numbers)\n', '    pass\n', '    return numbers[0]\n'],
            ['    return encode(s)\n', '    return encode(encode(s))\n'],
        ],
        workers=3,
    )
    assert [[o.passed for o in group] for group in outcomes] == [
        [True, False, False],
        [True, False],
    ]
    assert outcomes[0][1].reason.startswith('TypeError: unsupported operand')
    assert outcomes[1][1] == CompletionOutcome(False, 'AssertionError')


def test_every_problem_needs_its_completions():
    with pytest.raises(ValueError, match='zip'):
        score_completions([MEAN, DECODE], [['    pass\n']])


def test_the_test_runs_on_the_helpers_of_the_prompt_not_of_the_candidate():
    hijacked = '    return s\n\n\ndef encode(s):\n    return s\n'
    assert not run_test(DECODE, hijacked).passed


@pytest.mark.parametrize(
    ('result', 'assertion', 'passed'),
    [
        ('float("nan")', 'assert candidate(0) != candidate(0)', True),
        ('float("inf")', 'assert candidate(0) == float("inf")', True),
        ('{1: (2, {3}), "a": [None, True]}', 'assert candidate(0)[1] == (2, {3})', True),
        ('map(abs, x)', 'assert tuple(candidate([-1, 2])) == (1, 2)', True),
        ('map(abs, x)', 'assert candidate([-1, 2]) == [1, 2]', False),
        ('x.append(3) or x', 'assert candidate([1]) == [1, 3]', True),
        ('k', 'assert candidate(0, k=5) == 5', True),
        ('print("ready\\nnull") or x', 'assert candidate(7) == 7', True),
        ('10 ** 5000', 'assert candidate(0) > 0', False),
        ('"\\ud800\\n\\0"', 'assert candidate(0) == "\\ud800\\n\\0"', True),
        ('object()', 'candidate(0)', False),
        ('1 / 0', 'candidate(0)', False),
        ('x', 'print(candidate(1)) or print("null")', True),
        ('x', 'import sys; sys.exit(0)', False),
    ],
)
def test_what_a_candidate_returns(result, assertion, passed):
    prompt = 'def f(x, k=None):\n    """f."""\n'
    outcome = run_test(problem(prompt, assertion), f'    return {result}\n')
    assert outcome.passed == passed, outcome


def test_a_failed_call_cannot_be_caught():
    test = 'try:\n        candidate(0)\n    except Exception:\n        pass'
    for body in ('raise ValueError', 'import os; os._exit(0)'):
        assert not run_test(problem(test=test), f'    {body}\n').passed
    assert run_test(problem(test=test), '    return 0\n').passed


@pytest.mark.parametrize('caught', ['', ' BaseException', ' SystemExit'])
@pytest.mark.parametrize(
    'body',
    [
        'raise SystemExit(0)',
        'import sys; sys.exit()',
        'exit(0)',
        'import os; os._exit(0)',
        'raise KeyboardInterrupt',
        'raise ValueError',
        'return object()',
        'return "x" * (1 << 21)',
        'if x == 1: return 0\n    raise SystemExit',
    ],
)
def test_no_test_passes_that_swallows_a_failed_call(body, caught):
    call = f'try:\n            candidate(x)\n        except{caught}:\n            pass\n'
    test = problem(test=f'for x in range(2):\n        {call}')
    assert not run_test(test, f'    {body}\n').passed


@pytest.mark.parametrize('body', ['raise SystemExit', 'import sys\nsys.exit()'])
def test_a_program_that_exits_before_it_is_called_fails(body):
    test = 'try:\n        candidate(0)\n    except:\n        pass'
    outcome = run_test(problem(test=test), f'    return 0\n{body}\n')
    assert outcome == CompletionOutcome(False, 'SystemExit')


def test_a_test_that_ends_its_process_does_not_pass():
    for end in ('import os; os._exit(0)', 'raise SystemExit(0)'):
        assert not run_test(problem(test=f'candidate(0); {end}'), '    return 0\n').passed


def test_the_same_completion_gets_the_same_outcome():
    random.seed(0)
    drawn = random.random()
    test = f'import random\n    assert random.random() == {drawn!r}\n    assert candidate(0) == '
    order = '"".join({"a", "b", "c", "d", "e", "f"})'
    hashed = problem(test=f'{test}{order}')
    for _ in range(3):
        assert run_test(hashed, f'    return {order}\n') == CompletionOutcome(True)


@given(st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(data):
    samples = data.draw(st.integers(1, 8))
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(itertools.combinations(range(samples), k))
    share = sum(min(draw) < right for draw in draws) / len(draws)
    assert pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(('n', 'c', 'k'), [(200, 3, 100), (200, 1, 1), (200, 150, 60), (5, 0, 5)])
def test_pass_at_k_is_the_stable_form_of_the_paper(n, c, k):
    product = 1.0 if n - c < k else 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(product, abs=1e-12)


@pytest.mark.parametrize('k', [0, 4])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(UserError, match=f'pass@{k} of 3 samples .* k must be 1 to 3'):
        pass_at_k(3, 1, k)


HEAD = 'import math\n\n\ndef f(x):\n    """Its root, or 0."""'
BODY = 'if x < 0:\n        return 0\n    return math.sqrt(x)'


def value(completion: str, prompt: str) -> object:
    namespace: dict = {}
    exec(prompt + completion, namespace)
    return namespace['f'](-4), namespace['f'](4)


@pytest.mark.parametrize('end', ['', '\n', '\n    ', '\n    \n'])
@pytest.mark.parametrize(
    'start', ['', ' ', '   ', '    ', '\n    ', '\n\n    ', '\n   \n    ', '\t']
)
@pytest.mark.parametrize(
    'rest', ['', '\n', '\n\n\ndef g():\n    return (', '\nprint(f(4)', '\n```\nSo']
)
def test_a_completion_may_bring_any_white_space_and_more(end, start, rest):
    completion = completion_from_text(Problem(HEAD + end, '', 'f'), start + BODY + rest)
    assert value(completion, HEAD + end) == (0, 2.0)


@pytest.mark.parametrize('stop', ['class A', 'def g', '# Test', '@cache', 'print(', 'if __name__'])
def test_a_completion_ends_where_the_function_does(stop):
    text = f'    return 1\n\n{stop} …'
    assert completion_from_text(problem(), text) == '\n    return 1\n'
    inner = f'    x = 1\n    {stop} …'
    assert completion_from_text(problem(), inner) == f'\n{inner}'


def test_a_completion_may_start_the_function_anew():
    text = f'def f(x):\n    {BODY}\n\n\ndef g():\n    return ('
    assert value(completion_from_text(Problem(HEAD, '', 'f'), text), HEAD) == (0, 2.0)
    nested = 'def g(y):\n        return max(y, 0)\n    return math.sqrt(g(x))'
    assert value(completion_from_text(Problem(HEAD, '', 'f'), nested), HEAD) == (0, 2.0)


WHOLE = f'from math import sqrt\n\n\ndef f(x):\n    {BODY}\n'
DEDENTED = re.sub(r'\n    ', '\n', BODY)


@pytest.mark.parametrize(
    'answer',
    [
        f'```python\n{WHOLE}```',
        f'Sure! Here it is:\n\n```python\n{WHOLE}```\n\nIt uses `sqrt`.\n```\nf(4) == 2\n```',
        f'First:\n```bash\npip install x\n```\nthen\n```py\n{WHOLE}\n```',
        f'1. So:\n   ```python\n{"".join(f"   {line}" for line in WHOLE.splitlines(True))}   ```',
        f'```\n{WHOLE}',
        WHOLE,
        f'```python\n    {BODY}\n```',
        f'```python\n{DEDENTED}\n```',
        f'    {BODY}',
    ],
)
def test_a_chat_answer_holds_the_function_or_its_body(answer):
    completion = completion_from_chat(Problem(HEAD, '', 'f'), answer)
    assert value(completion, HEAD) == (0, 2.0)
