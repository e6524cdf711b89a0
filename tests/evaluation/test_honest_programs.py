"""Programs of the kind that language models write run in the sandbox as they do outside."""

import inspect

import pytest

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code_execution import Problem, run_test, score_completions
from tests.evaluation import benign_programs

try:
    sandbox.probe_protections()
except UserError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

PROGRAMS = dict(inspect.getmembers(benign_programs, inspect.isfunction))
# For the values that the functions return, as Python writes them.
IMPORTS = (
    'import datetime\nfrom collections import deque\nfrom decimal import Decimal\n'
    'from fractions import Fraction\nfrom math import inf\n'
)
DOCSTRING = '    """A function."""\n'


def failures(problems: list[Problem], bodies: list[str], names: list[str]) -> dict[str, str]:
    outcomes = score_completions(problems, [[body] for body in bodies], workers=2)
    return {n: o.reason for n, (o,) in zip(names, outcomes, strict=True) if not o.passed}


def test_they_return_the_same_as_outside():
    problems, bodies = [], []
    for name, function in PROGRAMS.items():
        head, _, body = inspect.getsource(function).partition('\n')
        test = f'{IMPORTS}def check(candidate):\n    assert candidate(21) == {function(21)!r}\n'
        problems.append(Problem(f'{head}\n{DOCSTRING}', test, name))
        bodies.append(body)
    assert failures(problems, bodies, list(PROGRAMS)) == {}


# The body of f(x), and what must be true of the candidate.
LAZY = {
    'generator': ('return (n * n for n in range(x))', 'next(candidate(3)) == 0'),
    'iterator': (
        'class Down:\n        n = x\n        def __init__(self): self.key = lambda: 0\n'
        '        def __iter__(self): return self\n'
        '        def __next__(self):\n            if self.n == 0: raise StopIteration\n'
        '            self.n -= 1\n            return self.n\n    return Down()',
        'list(candidate(3)) == [2, 1, 0]',
    ),
    'coroutine': (
        'async def twice(): return 2 * x\n    return twice()',
        '__import__("asyncio").run(candidate(3)) == 6',
    ),
}


def test_what_is_computed_later_travels():
    head = f'def f(x):\n{DOCSTRING}'
    problems = [
        Problem(head, f'def check(candidate):\n    assert {assertion}\n', 'f')
        for _, assertion in LAZY.values()
    ]
    bodies = [f'    {body}\n' for body, _ in LAZY.values()]
    assert failures(problems, bodies, list(LAZY)) == {}


CLASSES = '''import collections
import dataclasses
import enum
from typing import List, NamedTuple, Optional


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0

    def norm(self):
        return abs(self.x) + abs(self.y)


@dataclasses.dataclass(frozen=True)
class Key:
    name: str


class Node:
    __slots__ = ('value', 'next')

    def __init__(self, value, next=None):
        self.value, self.next = value, next


class Tree:
    def __init__(self, value, parent=None):
        self.value, self.parent, self.children = value, parent, []

    def __iter__(self):
        return iter(self.children)


class Money:
    def __init__(self, cents):
        self._cents = cents

    @property
    def cents(self):
        return self._cents

    def __eq__(self, other):
        return isinstance(other, Money) and self._cents == other._cents

    def __lt__(self, other):
        return self._cents < other._cents


class Color(enum.Enum):
    RED = 1
    BLUE = 'b'


class Pair(NamedTuple):
    a: int
    b: int


Range = collections.namedtuple('Range', 'low high')


def f(x, k=None):
    """f."""
'''
OBJECTS = {
    'data class': ('return Point(x, y=2)', 'candidate(1) == Point(1, 2)'),
    'method': ('return Point(x)', 'candidate(-3).norm() == 3'),
    'instance': ('return Point(x)', 'isinstance(candidate(-3), Point)'),
    'many': ('return [Point(n) for n in range(x)]', 'candidate(2) == [Point(0), Point(1)]'),
    'as key': ('return {Key(x): [Key("b")]}', 'candidate("a") == {Key("a"): [Key("b")]}'),
    'in a set': ('return {Key(x), Key("b")}', 'candidate("a") == {Key("b"), Key("a")}'),
    'argument': ('return x.norm() + k.y', 'candidate(Point(1, 2), k=Point(3, 4)) == 7'),
    'round trip': ('return x', 'candidate([Point(1, 2)]) == [Point(1, 2)]'),
    'own comparison': ('return Money(x)', 'candidate(3) == Money(3) and candidate(3) < Money(4)'),
    'unequal': ('return Money(x)', 'candidate(3) != Money(4) and candidate(3) != 3'),
    'property': ('return Money(x)', 'candidate(3).cents == 3'),
    'member': ('return Color.RED if x else Color("b")', 'candidate(0) is Color.BLUE'),
    'member as key': ('return {Color.RED: x}', 'candidate(0) == {Color.RED: 0}'),
    'named tuple': ('return Pair(x, 2)', 'candidate(1) == Pair(1, 2) and candidate(1).b == 2'),
    'collections.namedtuple': ('return Range(low=x, high=k)', 'candidate(1, 2).high == 2'),
    'linked list': (
        'head = None\n    for n in range(x): head = Node(n, head)\n    return head',
        '(lambda n: n.value == 4999 and n.next.next.value == 4997)(candidate(5000))',
    ),
    'linked list as argument': (
        'return x.next.next.value',
        'candidate(Node(1, Node(2, Node(3)))) == 3',
    ),
    'cycle': (
        'root = Tree(x)\n    root.children = [Tree(1, root), Tree(2, root)]\n    return root',
        '(lambda t: all(c.parent is t for c in t) and len(t.children) == 2)(candidate(0))',
    ),
    'shared': ('p = Point(x)\n    return [p, p]', '(lambda r: r[0] is r[1])(candidate(0))'),
    'class of the completion': (
        'class P:\n        def __init__(self): self.low, self.high = x, [x]\n    return P()',
        'candidate(1).low == 1 and candidate(1).high == [1]',
    ),
    'equal ones of the completion': (
        '@dataclasses.dataclass\n    class P:\n        a: int\n    return P(x)',
        'candidate(1) == candidate(1) and candidate(1) != candidate(2)',
    ),
    'namespace': (
        'import types\n    return types.SimpleNamespace(a=x)',
        '__import__("types").SimpleNamespace(a=1) == candidate(1)',
    ),
    'pickled': (
        'import pickle\n    return pickle.loads(pickle.dumps(Point(x)))',
        'candidate(1) == Point(1)',
    ),
}


def test_instances_of_user_defined_classes_travel():
    problems = [
        Problem(CLASSES, f'def check(candidate):\n    assert {assertion}\n', 'f')
        for _, assertion in OBJECTS.values()
    ]
    bodies = [f'    {body}\n' for body, _ in OBJECTS.values()]
    assert failures(problems, bodies, list(OBJECTS)) == {}


EQUAL = '__eq__ = lambda s, o: True'


@pytest.mark.parametrize(
    'body',
    [
        f'class P:\n        {EQUAL}\n    P.__qualname__ = "Point"\n    return P()',
        f'class P(Point):\n        {EQUAL}\n    return P(-1)',
        f'class P(Point):\n        {EQUAL}\n    P.__name__ = P.__qualname__ = "f"\n    return P(1)',
        'Point.__eq__ = lambda s, o: True\n    return Point(-1)',
        'p = Point(-1)\n    p.__eq__ = p.norm = 3\n    p.__dict__["__class__"] = 4\n    return p',
        f'class P(Pair):\n        {EQUAL}\n    return P(1, 3)',
    ],
)
def test_a_class_of_the_candidate_decides_no_comparison(body):
    test = 'def check(candidate):\n    assert candidate(1) == Point(1, 2)\n'
    assert not run_test(Problem(CLASSES, test, 'f'), f'    {body}\n').passed
