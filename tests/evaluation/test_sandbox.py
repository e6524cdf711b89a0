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
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code_execution import CompletionOutcome, Problem
from malora_jax.evaluation.confined import serialization
from tests.evaluation.helpers import (
    DOUBLE,
    READS,
    SOCKETS,
    WRITES,
    is_running,
    read_targets,
    run,
    run_all,
    successful_lines,
    wait_for,
)

try:
    PROTECTIONS = sandbox.probe_protections()
except UserError as refusal:
    pytest.skip(str(refusal), allow_module_level=True)

ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')


def protected(name: str):
    reason = f'this system has no protection of {name}'
    return pytest.mark.skipif(not getattr(PROTECTIONS, name), reason=reason)


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[int]:
    """IDs of the confined processes; the test fails if any process or file of them remains."""
    numbers = []

    class RecordedPopen(subprocess.Popen):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            numbers.append(self.pid)

    monkeypatch.setattr(subprocess, 'Popen', RecordedPopen)
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    yield numbers
    assert numbers
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.killpg(number, 0)
    assert list(temporary.iterdir()) == []


# Each program would be right without the hostile line before its answer.
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
@pytest.mark.parametrize('name', PROCESSES)
def test_it_starts_signals_and_changes_no_process(name, started):
    outcome = run(f'{PROCESSES[name]}\n    return 2 * x')
    refused = ('Function not implemented', "can't start new thread", 'AssertionError')
    assert not outcome.passed and any(r in outcome.reason for r in refused), outcome


def test_successes_are_seen():
    lines = {'a': 'import os', 'b': 'assert False', 'c': '{x}'}
    assert successful_lines(lines, x=1) == {'a', 'c'}


@protected('network')
def test_it_opens_no_socket():
    assert successful_lines(SOCKETS) == set()


MOUNT = {'mount': 'import ctypes; assert ctypes.CDLL(None).mount(b"a", b".", b"tmpfs", 0, 0) == 0'}


@protected('writing')
def test_it_changes_no_file(tmp_path, started):
    path = tmp_path / 'yours'
    path.write_text('yours')
    before = path.stat()
    assert successful_lines(WRITES | MOUNT, path=str(path)) == set()
    assert path.stat() == before and path.read_text() == 'yours'
    assert {p.name for p in tmp_path.iterdir()} == {'yours', 'temporary'}


@protected('reading')
def test_it_reads_nothing_but_libraries(tmp_path):
    assert successful_lines(READS, **read_targets(tmp_path)) == set()


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
    outcome = run('import time; time.sleep(100)', limits=sandbox.ResourceLimits(wall_seconds=3.0))
    assert outcome == CompletionOutcome(False, 'no verdict in time')
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


# In the examiner this would print that the test has passed, and exit.
PASS = '__import__("os").write(1, b"null\\n") and __import__("os")._exit(0)'
ENDLESS = ('MemoryError', 'the candidate has ended (out of processor time)')
# Attempts to pass without knowing the answer, and the start of the reason for which each fails.
# Code after the function takes effect before the first call.
CHEATS = {
    'equal to all': (
        'class E:\n        __eq__ = lambda s, o: True\n    return E()',
        'AssertionError',
    ),
    'number equal to all': (
        'class E(int):\n        __eq__ = lambda s, o: True\n    return E(-1)',
        'AssertionError',
    ),
    'no assertions': (
        'import builtins; builtins.AssertionError = None; return -1',
        'AssertionError',
    ),
    'frames': (
        'import sys; sys._getframe(1).f_globals["check"] = print; return -1',
        'AssertionError',
    ),
    'verdict': ('import os; os.write(1, b"ready\\nnull\\n"); return -1', 'AssertionError'),
    'code': (
        'return -1\n\nimport json\nreal = json.dumps\n'
        f'json.dumps = lambda x: real({{"result": {{"eval": {PASS!r}}}}})\n',
        "KeyError: 'eval'",
    ),
    'nested': (
        'return -1\n\nimport json\njson.dumps = lambda x: "[" * 900000\n',
        'RecursionError',
    ),
    'patched packing': (
        f'return -1\n\nimport confined.serialization\n'
        f'confined.serialization.pack = lambda x: {{"eval": {PASS!r}}}\n',
        "KeyError: 'eval'",
    ),
    'class of the examiner': (
        'return -1\n\nimport confined.serialization\n'
        'confined.serialization.pack = '
        'lambda x: {"objects": [[["Any", [], None]], {"object": 0}]}\n',
        'AssertionError',
    ),
    'raw answer': (
        'return -1\n\nimport os\n'
        'for d in range(3, 64):\n    try: os.write(d, b"null\\n")\n    except OSError: pass\n',
        "TypeError: argument of type 'NoneType'",
    ),
    'long': ('return "x" * (1 << 21)', 'its answer is too long'),
    'endless': ('import itertools; return itertools.count()', ENDLESS),
    'deep': (
        'y = []\n    for _ in range(10 ** 5): y = [y]\n    return y',
        'RecursionError',
    ),
    'every channel': (
        'import os\n    for d in range(1000):\n'
        '        try: os.write(d, b"ready\\nnull\\n" + b\'{"result": null}\\n\' * 9)\n'
        '        except OSError: pass\n    return -1',
        'JSONDecodeError: Expecting value: line 1 column 1 (char 0)',
    ),
    'closed channel': (
        'import os; os.closerange(0, 1000); return 2 * x',
        'the candidate has ended',
    ),
}


def test_it_cannot_make_the_test_pass(started):
    prompt = f'import unittest.mock\n\nAny = type(unittest.mock.ANY)\n\n\n{DOUBLE.prompt}'
    problem = Problem(prompt, DOUBLE.test, 'double')
    outcomes = run_all((body for body, _ in CHEATS.values()), problem)
    assert not any(outcome.passed for outcome in outcomes)
    for (name, (_, reason)), outcome in zip(CHEATS.items(), outcomes, strict=True):
        assert outcome.reason.startswith(reason), (name, outcome)


def test_it_never_holds_the_test():
    test = 'secret = "needle" + "work"\n' + DOUBLE.test
    body = (
        'import gc, os, sys; os.lseek(0, 0, 0); text = os.read(0, 1 << 20).decode()\n'
        '    text += repr(gc.get_objects()) + repr(sys.argv) + repr(dict(os.environ))\n'
        '    found = "".join(["need", "le"]) in text\n    raise ValueError(found, "double" in text)'
    )
    problem = Problem(DOUBLE.prompt, test, 'double')
    assert run(body, problem, sandbox.ResourceLimits()).reason == 'ValueError: (False, True)'


def test_it_finds_an_empty_world(monkeypatch):
    monkeypatch.setenv('SECRET', 'secret')
    body = (
        'import os, sys; assert os.listdir(".") == []\n    assert "SECRET" not in os.environ\n'
        '    assert not [m for m in sys.modules if m.startswith("malora")]\n    return 2 * x'
    )
    assert run(body) == CompletionOutcome(True)


def test_the_standard_library_works():
    modules = (
        'bisect, collections, copy, datetime, decimal, functools, hashlib, heapq, itertools, json, '
        'math, operator, random, re, statistics, string, typing, unicodedata'
    )
    body = f'import {modules}\n    datetime.datetime.now(); hashlib.md5(b"x"); return 2 * x'
    assert run(body) == CompletionOutcome(True)


SLEEPING = """
from malora_jax.evaluation.code_execution import Problem, run_test, sandbox

problem = Problem('def f():\\n    "f"\\n', 'def check(f):\\n    f()\\n', 'f')
run_test(problem, '    import time; time.sleep(100)\\n', sandbox.ResourceLimits(1, 50.0))
"""


@contextlib.contextmanager
def evaluating(folder: pathlib.Path):
    """Start an evaluation of a sleeping candidate; yield it and the IDs of its two processes."""
    environment = {**os.environ, 'TMPDIR': str(folder)}
    with subprocess.Popen([sys.executable, '-c', SLEEPING], env=environment) as process:
        children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
        numbers = []
        try:
            wait_for(lambda: len(children.read_text().split()) == 2)
            numbers = [int(number) for number in children.read_text().split()]
            wait_for(lambda: all(map(is_sleeping, numbers)))
            yield process, numbers
        finally:
            for number in (process.pid, *filter(is_running, numbers)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def is_sleeping(number: int) -> bool:
    """Return whether a process is confined and sleeps.

    The candidate sleeps for a time, and the examiner waits for the candidate.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = pathlib.Path(f'/proc/{number}/status').read_text()
        return all(line in status for line in ('State:\tS', 'Threads:\t1\n', 'Seccomp:\t2\n'))
    return False


@ON_LINUX
@protected('processes')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_the_evaluation_and_leaves_nothing(number, tmp_path, monkeypatch):
    with evaluating(tmp_path) as (process, children):
        time.sleep(0.3)
        assert process.poll() is None and all(map(is_sleeping, children))
        process.send_signal(number)
        assert process.wait() == -number
        wait_for(lambda: not any(map(is_running, children)), seconds=10.0)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    sandbox._probe_layers.__wrapped__()  # As at the start of the next evaluation.
    assert list(tmp_path.iterdir()) == []


@ON_LINUX
@protected('processes')
def test_the_next_evaluation_leaves_the_directories_of_others(tmp_path, monkeypatch):
    (tmp_path / 'yours').mkdir()
    full = tmp_path / f'{sandbox._PREFIX}full'
    full.mkdir()
    (full / 'yours').touch()
    (tmp_path / f'{sandbox._PREFIX}link').symlink_to(tmp_path / 'yours')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with evaluating(tmp_path):
        before = set(tmp_path.rglob('*'))
        sandbox._probe_layers.__wrapped__()
        assert set(tmp_path.rglob('*')) == before and len(before) == 6


def test_limits_name_the_field():
    for field, value in [('cpu_seconds', 0), ('wall_seconds', 0.0), ('memory_bytes', 1 << 20)]:
        with pytest.raises(UserError, match=f'limits.{field} is'):
            sandbox.ResourceLimits(**{field: value})


def test_the_least_memory_is_enough():
    assert run(
        'return 2 * x', limits=sandbox.ResourceLimits(memory_bytes=sandbox._MIN_MEMORY_BYTES)
    ).passed


def test_a_sandbox_that_does_not_start_is_no_failure_of_the_candidate(monkeypatch):
    with pytest.raises(OSError, match='did not start within'):
        run('return 2 * x', limits=sandbox.ResourceLimits(wall_seconds=0.001))
    monkeypatch.setattr(sandbox, '_BOOTSTRAP', 'raise SystemExit("broken")')
    with pytest.raises(OSError, match='does not work here: broken'):
        sandbox._probe_layers.__wrapped__()


@pytest.fixture
def unprotected(monkeypatch):
    """Emulate a system whose only protection is resource limits."""
    process = subprocess.CompletedProcess([], 0)
    process.communicate = lambda: (b'["memory"]', b'')
    started = sandbox._start_process
    probe = contextlib.nullcontext(process)
    monkeypatch.setattr(
        sandbox,
        '_start_process',
        lambda role, *a, **k: probe if role == 'probe' else started(role, *a),
    )
    monkeypatch.setattr(sandbox, '_probe_layers', sandbox._probe_layers.__wrapped__)


def test_what_is_missing_is_stated(unprotected, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    assert sandbox.probe_protections() == sandbox.Protections(True, False, False, False, False)
    assert run('return 2 * x').passed
    assert run('while True: pass').reason == 'the candidate has ended (out of processor time)'


def test_root_without_protection_is_refused(unprotected, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    with pytest.raises(UserError, match='does not support seccomp filters'):
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
    result = serialization.unpack(json.loads(json.dumps(serialization.pack(value))))
    assert repr(result) == repr(value) or result == value
    assert type(result) is type(value)


def test_other_iterables_travel_as_iterators():
    for value in (range(3), (n for n in range(3)), {0: 'a', 1: 'b', 2: 'c'}.keys()):
        result = serialization.unpack(serialization.pack(value))
        assert result != [0, 1, 2] and list(result) == [0, 1, 2]


def test_subclasses_travel_as_plain_data():
    Pair = namedtuple('Pair', 'a b')
    values_ = [Counter('aab'), OrderedDict(a=1), Pair(1, Decimal('0.5')), signal.SIGKILL]
    expected = [{'a': 2, 'b': 1}, {'a': 1}, (1, Decimal('0.5')), 9]
    result = serialization.unpack(serialization.pack(values_))
    assert result == expected and [type(v) for v in result[:3]] == [dict, dict, tuple]
    assert serialization.unpack(serialization.pack(Fraction(1, 3))) == Fraction(1, 3)


@pytest.mark.parametrize('value', [object(), print, int, [object()], {1: print}])
def test_other_things_do_not_travel(value):
    with pytest.raises(TypeError, match='is not plain data'):
        serialization.pack(value)
