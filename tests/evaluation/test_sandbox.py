"""Hostile code is contained and scored as a failure."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code import (
    Outcome,
    Problem,
    cut_completion,
    humaneval_passes,
    score_completions,
)
from malora_jax.evaluation.confined import values

try:
    PROTECTIONS = sandbox.protections()
except UserError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
QUICK = sandbox.Limits(cpu_seconds=1, wall_seconds=30.0, memory_bytes=1 << 28)
DOUBLE = Problem(
    'def double(x):\n    """Twice x."""\n',
    'def check(candidate):\n    for x in range(3):\n        assert candidate(x) == 2 * x\n',
    'double',
)


def run(body: str, problem: Problem = DOUBLE, limits: sandbox.Limits = QUICK) -> Outcome:
    return humaneval_passes(problem, cut_completion(problem, body), limits)


def run_all(bodies: Iterable[str]) -> list[Outcome]:
    """Outcomes of many completions at once: most of them wait for a limit."""
    completions = [cut_completion(DOUBLE, body) for body in bodies]
    (outcomes,) = score_completions([DOUBLE], [completions], QUICK, workers=8)
    return outcomes


def protected(name: str):
    reason = f'this system has no protection of {name}'
    return pytest.mark.skipif(not getattr(PROTECTIONS, name), reason=reason)


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[int]:
    """Numbers of the confined processes; at the end nothing of them may be left."""
    numbers = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            numbers.append(self.pid)

    monkeypatch.setattr(subprocess, 'Popen', Recorded)
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    yield numbers
    assert numbers
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.killpg(number, 0)
    assert list(temporary.iterdir()) == []


# Each would be right but for the hostile line before it.
PROCESSES = {
    'fork': 'import os; os.fork()',
    'fork bomb': 'import os\n    while True: os.fork()',
    'daemon': 'import os; os.fork() or os.setsid() or os.fork()',
    'subprocess': 'import subprocess; subprocess.run(["true"])',
    'exec': 'import os; os.execv("/bin/sh", ["sh", "-c", "exit 0"])',
    'spawn': 'import os; os.posix_spawn("/bin/true", ["true"], {})',
    'thread': 'import threading; threading.Thread(target=print).start()',
    'kill all': 'import os; os.kill(-1, 0)',
    'kill parent': 'import os; os.kill(os.getppid(), 0)',
    'signal by descriptor': 'import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, 1)',
    'limit parent': 'import resource as r; r.prlimit(1, r.RLIMIT_CPU, (1, 1))',
    'raise limits': 'import resource as r; r.setrlimit(r.RLIMIT_CPU, (-1, -1))',
    'become another': 'import os; os.setuid(65534)',
    'shared memory': 'import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0',
}


@protected('processes')
def test_it_starts_signals_and_changes_no_process(started):
    outcomes = run_all(f'{line}\n    return 2 * x' for line in PROCESSES.values())
    refused = ('Function not implemented', "can't start new thread", 'AssertionError')
    for name, outcome in zip(PROCESSES, outcomes, strict=True):
        assert not outcome.passed and any(r in outcome.reason for r in refused), (name, outcome)


def successes(lines: dict[str, str], **values: object) -> str:
    """Names of the lines that run through, all in one process."""
    attempts = {name: line.format(**values) for name, line in lines.items()}
    body = (
        f'names = []\n    for name, line in {attempts!r}.items():\n'
        '        try:\n            exec(line)\n        except (OSError, AssertionError):\n'
        '            continue\n        names.append(name)\n    raise ValueError(*names)'
    )
    return run(body).reason.removeprefix('ValueError').removeprefix(': ')


def test_successes_are_seen():
    assert successes({'a': 'import os', 'b': 'assert False', 'c': '{x}'}, x=1) == "('a', 'c')"


SOCKETS = {
    'internet': 'import socket; socket.socket(socket.AF_INET)',
    'local': 'import socket; socket.socketpair()',
    'raw call': 'import ctypes; assert ctypes.CDLL(None).socket(2, 1, 0) >= 0',
}


@protected('network')
def test_it_opens_no_socket():
    assert successes(SOCKETS) == ''


WRITES = {
    'write': 'open({path!r}, "w").write("mine")',
    'append': 'open({path!r}, "a").write("mine")',
    'truncate': 'import os; os.open({path!r}, os.O_TRUNC)',
    'make': 'open({path!r} + ".new", "x")',
    'folder': 'import os; os.mkdir({path!r} + ".new")',
    'link': 'import os; os.symlink({path!r}, "link"); open("link", "w")',
    'hard link': 'import os; os.link({path!r}, {path!r} + ".new")',
    'remove': 'import os; os.remove({path!r})',
    'rename': 'import os; os.rename({path!r}, {path!r} + ".new")',
    'mode': 'import os; os.chmod({path!r}, 0)',
    'time': 'import os; os.utime({path!r}, (0, 0))',
    'unnamed': 'import os; os.open("/tmp", os.O_TMPFILE | os.O_RDWR)',
    'here': 'open("here", "w")',
    'mount': 'import ctypes; assert ctypes.CDLL(None).mount(b"a", b".", b"tmpfs", 0, 0) == 0',
}


@protected('writing')
def test_it_changes_no_file(tmp_path, started):
    path = tmp_path / 'yours'
    path.write_text('yours')
    before = path.stat()
    assert successes(WRITES, path=str(path)) == ''
    assert path.stat() == before and path.read_text() == 'yours'
    assert {p.name for p in tmp_path.iterdir()} == {'yours', 'temporary'}


READS = {
    'file': 'open({path!r}).read()',
    'listing': 'import os; os.listdir(os.path.dirname({path!r}))',
    'users': 'open("/etc/passwd").read()',
    'memory': 'open("/proc/{parent}/mem", "rb").read(1)',
    'command line': 'open("/proc/{parent}/cmdline").read()',
    'environment': 'open("/proc/{parent}/environ").read()',
    'packages': 'import sys; open(sys.path[1] + "/site-packages/README.txt")',
    'this code': 'open({code!r})',
}


@protected('reading')
def test_it_reads_nothing_but_libraries(tmp_path):
    path = tmp_path / 'secret'
    path.write_text('secret')
    assert successes(READS, path=str(path), parent=os.getpid(), code=__file__) == ''


ENDS = {
    'while True: pass': 'the candidate has ended (out of processor time)',
    'import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass': (
        f'the candidate has ended ({signal.strsignal(signal.SIGKILL)})'
    ),
    'import os; os._exit(0)': 'the candidate has ended (with status 0)',
    'import ctypes; ctypes.string_at(0)': (
        f'the candidate has ended ({signal.strsignal(signal.SIGSEGV)})'
    ),
    'raise SystemExit(0)': 'SystemExit: 0',
    'raise KeyboardInterrupt': 'KeyboardInterrupt',
    'return double(x)': 'RecursionError: maximum recursion depth exceeded',
    'return (': "SyntaxError: '(' was never closed (candidate, line 4)",
    'return 2 * input()': 'EOFError: EOF when reading a line',
    'import numpy; return 2 * x': "ModuleNotFoundError: No module named 'numpy'",
    'return x': 'AssertionError',
}


def test_it_ends_with_a_reason(started):
    outcomes = run_all(ENDS)
    assert not any(outcome.passed for outcome in outcomes)
    assert dict(zip(ENDS, [outcome.reason for outcome in outcomes], strict=True)) == ENDS


def test_it_may_not_sleep_for_long(started):
    begin = time.monotonic()
    outcome = run('import time; time.sleep(100)', limits=sandbox.Limits(wall_seconds=3.0))
    assert outcome == Outcome(False, 'no verdict in time')
    assert time.monotonic() - begin < 10


@protected('memory')
def test_memory_is_bounded(started):
    many = 'blocks = []\n    while True: blocks.append(bytes(1 << 20))'
    assert run(many).reason == 'MemoryError'
    test = 'def check(candidate):\n    assert 100 < candidate(0) < 256\n'
    body = (
        'blocks = []\n    try:\n        while True: blocks.append(bytearray(1 << 20))\n'
        '    except MemoryError:\n        return len(blocks)'
    )
    assert run(body, Problem(DOUBLE.prompt, test, 'double')).passed


# Attempts to pass without knowing the answer.
CHEATS = {
    'equal to all': 'class E:\n        __eq__ = lambda s, o: True\n    return E()',
    'number equal to all': 'class E(int):\n        __eq__ = lambda s, o: True\n    return E(-1)',
    'no assertions': 'import builtins; builtins.AssertionError = None; return -1',
    'frames': 'import sys; sys._getframe(1).f_globals["check"] = print; return -1',
    'patched packing': 'import confined.values as v; v.pack = lambda x: {"pass": x}; return -1',
    'verdict': 'import os; os.write(1, b"ready\\nnull\\n"); return -1',
    'code': 'import json; json.dumps = lambda x: \'{"result": {"eval": "1"}}\'; return -1',
    'nested': 'import json; json.dumps = lambda x: "[" * 900000; return -1',
    'long': 'return "x" * (1 << 21)',
    'endless': 'import itertools; return itertools.count()',
    'deep': 'y = []\n    for _ in range(10 ** 5): y = [y]\n    return y',
    'every channel': (
        'import os\n    for d in range(1000):\n'
        '        try: os.write(d, b"ready\\nnull\\n" + b\'{"result": null}\\n\' * 9)\n'
        '        except OSError: pass\n    return -1'
    ),
    'closed channel': 'import os; os.closerange(0, 1000); return 2 * x',
}


def test_it_cannot_make_the_test_pass(started):
    outcomes = run_all(CHEATS.values())
    assert [name for name, o in zip(CHEATS, outcomes, strict=True) if o.passed] == []


def test_it_never_holds_the_test():
    test = 'secret = "needle" + "work"\n' + DOUBLE.test
    body = (
        'import gc, os, sys; os.lseek(0, 0, 0); text = os.read(0, 1 << 20).decode()\n'
        '    text += repr(gc.get_objects()) + repr(sys.argv) + repr(dict(os.environ))\n'
        '    found = "".join(["need", "le"]) in text\n    raise ValueError(found, "double" in text)'
    )
    problem = Problem(DOUBLE.prompt, test, 'double')
    assert run(body, problem, sandbox.Limits()).reason == 'ValueError: (False, True)'


def test_it_finds_an_empty_world(monkeypatch):
    monkeypatch.setenv('SECRET', 'secret')
    body = (
        'import os, sys; assert os.listdir(".") == []\n    assert "SECRET" not in os.environ\n'
        '    assert not [m for m in sys.modules if m.startswith("malora")]\n    return 2 * x'
    )
    assert run(body) == Outcome(True)


def test_the_standard_library_works():
    modules = (
        'bisect, collections, copy, datetime, decimal, functools, hashlib, heapq, itertools, json, '
        'math, operator, random, re, statistics, string, typing, unicodedata'
    )
    body = f'import {modules}\n    datetime.datetime.now(); hashlib.md5(b"x"); return 2 * x'
    assert run(body) == Outcome(True)


@ON_LINUX
def test_it_dies_with_the_evaluation(tmp_path):
    script = (
        'from malora_jax.evaluation.code import *\n'
        'problem = Problem("def f():\\n", "def check(f): f()", "f")\n'
        'humaneval_passes(problem, "    import time; time.sleep(100)", sandbox.Limits(1, 50.0))\n'
    )
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, 'PYTHONPATH': str(root), 'TMPDIR': str(tmp_path)}
    with subprocess.Popen([sys.executable, '-c', script], env=environment) as process:
        folder = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
        children = wait_for(lambda: len(folder.read_text().split()) == 2 and folder.read_text())
        time.sleep(0.5)
        process.kill()
    wait_for(lambda: not any(running(int(number)) for number in children.split()))


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def running(number: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = pathlib.Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0]
        return state not in 'ZX'
    return False


def test_limits_name_the_field():
    for field, value in [('cpu_seconds', 0), ('wall_seconds', 0.0), ('memory_bytes', 1 << 20)]:
        with pytest.raises(UserError, match=f'limits.{field} is'):
            sandbox.Limits(**{field: value})


def test_the_least_memory_is_enough():
    assert run('return 2 * x', limits=sandbox.Limits(memory_bytes=sandbox._LEAST_MEMORY)).passed


def test_a_sandbox_that_does_not_start_is_no_failure_of_the_candidate(monkeypatch):
    with pytest.raises(OSError, match='did not start within'):
        run('return 2 * x', limits=sandbox.Limits(wall_seconds=0.001))
    monkeypatch.setattr(sandbox, '_START', 'raise SystemExit("broken")')
    with pytest.raises(OSError, match='does not work here: broken'):
        sandbox._layers.__wrapped__()


@pytest.fixture
def unprotected(monkeypatch):
    """A system that has nothing but limits."""
    process = subprocess.CompletedProcess([], 0)
    process.communicate = lambda: (b'["memory"]', b'')
    started = sandbox._started
    probe = contextlib.nullcontext(process)
    monkeypatch.setattr(
        sandbox, '_started', lambda role, *a, **k: probe if role == 'probe' else started(role, *a)
    )
    monkeypatch.setattr(sandbox, '_layers', sandbox._layers.__wrapped__)


def test_what_is_missing_is_stated(unprotected, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    assert sandbox.protections() == sandbox.Protections(True, False, False, False, False)
    assert run('return 2 * x').passed
    assert run('while True: pass').reason == 'the candidate has ended (out of processor time)'


def test_root_without_protection_is_refused(unprotected, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    with pytest.raises(UserError, match='cannot confine root'):
        run('return 2 * x')


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(SCALARS)
        | st.frozensets(SCALARS)
        | st.dictionaries(SCALARS, inner)
    ),
    max_leaves=10,
)


@settings(max_examples=50)
@given(VALUES)
def test_plain_data_travels(value):
    result = values.unpack(json.loads(json.dumps(values.pack(value))))
    assert repr(result) == repr(value) or result == value
    assert type(result) is type(value)


def test_other_iterables_travel_as_iterators():
    for value in (range(3), (n for n in range(3)), {0: 'a', 1: 'b', 2: 'c'}.keys()):
        result = values.unpack(values.pack(value))
        assert result != [0, 1, 2] and list(result) == [0, 1, 2]


def test_subclasses_travel_as_plain_data():
    Pair = namedtuple('Pair', 'a b')
    values_ = [Counter('aab'), OrderedDict(a=1), Pair(1, Decimal('0.5')), signal.SIGKILL]
    expected = [{'a': 2, 'b': 1}, {'a': 1}, (1, Decimal('0.5')), 9]
    result = values.unpack(values.pack(values_))
    assert result == expected and [type(v) for v in result[:3]] == [dict, dict, tuple]
    assert values.unpack(values.pack(Fraction(1, 3))) == Fraction(1, 3)


@pytest.mark.parametrize('value', [object(), print, int, [object()], {1: print}])
def test_other_things_do_not_travel(value):
    with pytest.raises(TypeError, match='is no plain data'):
        values.pack(value)
