"""Random programs in the sandbox: benign ones give the same results, hostile ones do no harm."""

import os
import pathlib
import sys
import tempfile

import pytest

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code_execution import CompletionOutcome, Problem, run_test

pytestmark = pytest.mark.fuzz

try:
    PROTECTIONS = sandbox.probe_protections()
except UserError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

# Both sides describe values in the same way, because not every value has a literal.
PROMPT = '''import asyncio, collections, dataclasses, datetime, decimal, enum, fractions
import json, typing


@dataclasses.dataclass
class Point:
    x: object
    y: object = None


class Pair(typing.NamedTuple):
    first: object
    second: object


class Color(enum.Enum):
    RED = 1
    BLUE = 'b'


def describe(value):
    if isinstance(value, dict):
        return ['dict', *([describe(k), describe(v)] for k, v in value.items())]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, *sorted(repr(describe(item)) for item in value)]
    if isinstance(value, list | tuple | collections.deque):
        return [type(value).__name__, *map(describe, value)]
    if isinstance(value, Point):
        return ['Point', describe(value.x), describe(value.y)]
    return [type(value).__name__, repr(value)]


async def echo(value):
    await asyncio.sleep(0)
    return value


def f(x):
    """f."""
'''
LITERALS = """
None | True | False | x | 0 | -1 | 2 ** 70 | -0.0 | 0.1 | 1e308 | float("inf") | float("nan")
"" | "é\\n\\0" | "\\ud800" | "😀" | b"\\xff" | bytearray(b"a") | 2j | [] | () | {} | set()
decimal.Decimal("1.50") | fractions.Fraction(1, 3) | Color.RED | Color.BLUE | {1, 2, 3}
range(1, 9, 3) | frozenset({1.5}) | datetime.date(2024, 2, 29) | datetime.timedelta(1, 2, 3)
datetime.time(1) | datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.timezone.utc)
"""
TEMPLATES = """
[{0}, {1}] | ({0},) | ({0}, {1}, {0}) | {{"k": {0}, 1: {1}}} | {{{0}: {1}}} | Point({0})
Point({0}, {1}) | Pair({0}, {1}) | collections.deque([{0}, {1}]) | (lambda v: [v, v])({0})
({0} if {1} else {1}) | ({0} == {1}) | [{0}] * 3 | (not {0}) | ({0}) + ({1}) | sorted([{0}, {1}])
({0}) * ({1} if {1} in (2, 3) else 2) | len({0}) | asyncio.run(echo({0})) | str({0}).upper()
json.loads(json.dumps({0})) | (repr({0}) == repr({1})) | collections.Counter(repr({0}))
collections.OrderedDict(a={0}) | [y for y in {0}] | dict(enumerate([{0}, {1}])) | max({0}, {1})
"""


def choose(rng, table):
    return rng.choice(table.strip().replace('\n', ' | ').split(' | '))


def expression(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        return choose(rng, LITERALS)
    parts = [expression(rng, depth - 1) for _ in range(2)]
    return choose(rng, TEMPLATES).format(*parts)


def test_honest_programs_return_the_same_as_outside(attempts):
    for rng in attempts(15):
        lines = [expression(rng, rng.randrange(5)) for _ in range(20)]
        cases = ''.join(f'        if x == {n}: return {line}\n' for n, line in enumerate(lines))
        body = f'    try:\n{cases}    except Exception as error:\n        return repr(error)\n'
        namespace = {'__name__': 'program'}
        exec(PROMPT + body, namespace)
        expected = [namespace['describe'](namespace['f'](n)) for n in range(len(lines))]
        test = (
            f'expected = {expected!r}\n\n\ndef check(candidate):\n'
            '    for n, value in enumerate(expected):\n'
            '        got = describe(candidate(n))\n        assert got == value, (n, got, value)\n'
        )
        outcome = run_test(Problem(PROMPT, test, 'f'), body)
        assert outcome == CompletionOutcome(True), (outcome, dict(enumerate(lines)))


# An attack may affect its own answer or a later one; all of its answers are wrong.
DOUBLE = Problem(
    'def double(x):\n    """Twice x."""\n',
    'def check(candidate):\n    candidate(0)\n    for x in range(1, 3):\n        try:\n'
    '            assert candidate(x) == 2 * x\n        except TypeError:\n            pass\n',
    'double',
)
QUICK = sandbox.ResourceLimits(cpu_seconds=1, wall_seconds=10.0, memory_bytes=1 << 28)
# System calls of x86_64 that may wait forever: read, readv, futex and epoll_wait.
WAITING = {0, 19, 202, 232}


def numbers(rng):
    return rng.choice([-1, 0, 1, 2, 3, 4096, 1 << 31, rng.getrandbits(64), rng.randrange(1000)])


def system_calls(rng, path):
    calls = []
    for _ in range(rng.randrange(1, 12)):
        number = rng.choice([n for n in range(470) if n not in WAITING])
        arguments = [rng.choice(['path', 'zeros', str(numbers(rng))]) for _ in range(6)]
        arguments = [a if a.isalpha() else f'ctypes.c_long({a})' for a in arguments]
        calls.append(f'syscall(ctypes.c_long({number}), {", ".join(arguments)})')
    return (
        'import ctypes\n    syscall = ctypes.CDLL(None).syscall\n'
        f'    path, zeros = ctypes.create_string_buffer({path!r}.encode()), bytes(4096)\n    '
        + '; '.join(calls)
    )


def files(rng, path):
    flags = rng.getrandbits(22)
    name = rng.choice(
        [path, path + '.new', '/etc/passwd', '.', 'new', '/proc/self/mem', '/dev/shm/a']
    )
    action = rng.choice(
        ['os.write(d, b"x")', 'os.ftruncate(d, 0)', 'os.fchmod(d, 0)', 'os.read(d, 9)']
    )
    return f'import os\n    d = os.open({name!r}, {flags})\n    {action}'


def sockets(rng, path):
    kind = rng.choice([1, 2, 3, 5, 1 | 2048])
    call = rng.choice(['connect(("127.0.0.1", 1))', f'bind({path + ".socket"!r})', 'listen()'])
    return f'import socket\n    socket.socket({rng.randrange(20)}, {kind}).{call}'


def processes(rng, path):
    return rng.choice(
        [
            'import os\n    while True: os.fork()',
            f'import subprocess\n    subprocess.run("rm -r {path}", shell=True)',
            f'import os\n    os.kill({rng.choice([-1, 0, 1, os.getpid(), os.getppid()])}, 0)',
            'import multiprocessing\n    multiprocessing.Pool(2)',
            'import concurrent.futures as c\n    list(c.ThreadPoolExecutor().map(print, [1]))',
            f'import os\n    os.execv({sys.executable!r}, ["python", "-c", "open({path!r}, 1)"])',
            'import os\n    os.setsid(); os.setuid(1)',
        ]
    )


def memory(rng, path):
    return rng.choice(
        [
            f'blocks = []\n    while True: blocks.append(bytearray({1 << rng.randrange(10, 29)}))',
            'return "x" * (1 << 40)',
            f'y = []\n    for _ in range({10 ** rng.randrange(3, 6)}): y = [y]\n    return y',
            'y = []\n    y.append(y)\n    return y',
            'return iter(int, 1)',
            'def g(): return g()\n    return g()',
            f'import mmap\n    return len(mmap.mmap(-1, {1 << rng.randrange(12, 45)})) * 0 - 1',
        ]
    )


def floods(rng, path):
    text = rng.choice(
        [b'\0', b'null\n', b'{"result": null}\n', b'[' * 999, b'ready\nnull\n', b'\xff']
    )
    return (
        f'import os\n    for d in range({rng.choice([3, 64])}):\n        try:\n'
        f'            for _ in range({rng.choice([1, 5, 100])}): os.write(d, {text!r} * 4096)\n'
        '        except OSError: pass'
    )


def answers(rng, path):
    def value(depth):
        if depth == 0 or rng.random() < 0.2:
            return rng.choice([None, True, -1, 1e999, '', 'double', [], {}, numbers(rng)])
        if rng.random() < 0.3:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        kinds = 'dict set tuple iterator object objects member coroutine datetime complex range'
        kind = rng.choice([*kinds.split(), 'named tuple', 'Decimal', 'bytes', 'result', 'eval'])
        return {kind: value(depth - 1)}

    reply = repr(rng.choice([{'result': value(5)}, {'raised': value(3)}, value(4)]))
    return (
        'import confined.roles, json\n    real = json.dumps\n'
        f'    reply = eval({reply!r}, {{"inf": float("inf")}})\n'
        '    json.dumps = lambda _: real(reply)\n    confined.roles.values.pack = lambda _: reply'
    )


BREAK = '\n'
ATTACKS = [system_calls, files, sockets, processes, memory, floods, answers]


def world(path):
    """Return the state that a hostile program must not change: files and processes."""
    tasks = pathlib.Path('/proc/self/task').iterdir()
    children = ' '.join((task / 'children').read_text() for task in tasks).split()
    status = path.stat()
    return {
        'file': (path.read_text(), status.st_mode, status.st_uid, status.st_mtime_ns),
        'files': {str(found) for found in path.parent.rglob('*')},
        'children': children,
    }


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
@pytest.mark.skipif(
    not (PROTECTIONS.processes and PROTECTIONS.reading), reason='nothing would contain them'
)
def test_hostile_programs_are_contained(attempts, tmp_path, monkeypatch):
    temporary, mine = tmp_path / 'temporary', tmp_path / 'mine'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    mine.write_text('mine')
    before = world(mine)
    for rng in attempts(40):
        lines = [rng.choice(ATTACKS)(rng, str(mine)) for _ in range(rng.randrange(1, 4))]
        body = '    answer = None\n' + ''.join(
            f'    def attack():\n        {line.replace(BREAK, BREAK + "    ")}\n'
            '    try: answer = x < 2 and attack()\n    except BaseException: pass\n'
            for line in lines
        )
        body += '    return answer or -1\n'
        outcome = run_test(DOUBLE, body, QUICK)
        assert not outcome.passed and 'SyntaxError' not in outcome.reason, (outcome, body)
        assert world(mine) == before, body
