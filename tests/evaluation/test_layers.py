"""Each layer of the sandbox alone: layers that would hide its absence are off."""

import errno
import os
import signal
import socket
import sys
import time

import pytest

from malora_jax.errors import UserError
from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code_execution import CompletionOutcome, Problem
from tests.evaluation.helpers import (
    DOUBLE,
    QUICK,
    READS,
    SOCKETS,
    WRITES,
    read_targets,
    run,
    successful_lines,
)

ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='a layer of Linux')
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason='others have no privileges to give up')


def available(layer: str) -> bool:
    try:
        return layer in sandbox._probe_layers()
    except UserError:
        return False


def needs(*layers: str):
    missing = [layer for layer in layers if not available(layer)]
    return pytest.mark.skipif(bool(missing), reason=f'this system has no {missing}')


@pytest.fixture
def only(monkeypatch):
    """Function that enables only the given layers, of those that not every system has."""
    return lambda *layers: monkeypatch.setattr(sandbox, '_probe_layers', lambda: layers)


def test_honest_programs_run(only):
    only()
    assert run('return 2 * x') == CompletionOutcome(True)


def test_resources_are_limited(only):
    only('memory')
    kinds = ('CPU', 'CORE', 'NOFILE', 'FSIZE', 'NPROC', 'AS')
    body = (
        f'import resource as r\n    kinds = {kinds}\n'
        '    raise ValueError([r.getrlimit(getattr(r, f"RLIMIT_{kind}")) for kind in kinds])'
    )
    limits = [(1, 2), (0, 0), (64, 64), (0, 0), (0, 0), (1 << 28, 1 << 28)]
    assert run(body).reason == f'ValueError: {limits}'


def test_processor_time_ends_a_program_that_ignores_the_first_signal(only):
    only()
    body = 'import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass'
    outcome = run(body, limits=sandbox.ResourceLimits(1, 60.0))
    assert outcome.reason == f'the candidate has ended ({signal.strsignal(signal.SIGKILL)})'


def test_no_byte_is_written_to_a_file(only):
    only()
    body = 'with open("here", "w") as f: f.write("x")\n    return 2 * x'
    assert run(body).reason == f'OSError: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}'


@ON_LINUX
def test_no_program_gains_privileges(only):
    only()
    body = 'import ctypes\n    raise ValueError(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))'
    assert run(body).reason == 'ValueError: 1'


@ON_LINUX
def test_it_does_not_start_once_the_evaluation_has_ended(only, monkeypatch):
    only()
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    with pytest.raises(OSError, match='did not start'):
        run('return 2 * x')


ATTEMPTS = {'landlock': READS, 'seccomp': SOCKETS | WRITES}


@ON_LINUX
@pytest.mark.parametrize('layer', ATTEMPTS)
def test_without_the_layer_attempts_succeed(layer, only, tmp_path):
    """Without the layer, the attempts that it should stop succeed."""
    only()
    # Only a process's own tracers and root can read its memory.
    hidden = {'memory'} if os.geteuid() else set()
    values = read_targets(tmp_path)
    assert successful_lines(ATTEMPTS[layer], **values) >= set(ATTEMPTS[layer]) - hidden


@pytest.mark.parametrize('layer', [pytest.param(layer, marks=needs(layer)) for layer in ATTEMPTS])
def test_the_layer_alone_stops_attempts(layer, only, tmp_path):
    only(layer)
    assert successful_lines(ATTEMPTS[layer], **read_targets(tmp_path)) == set()


@needs('seccomp')
@AS_ROOT
def test_root_has_no_privileges(only, tmp_path):
    only('seccomp')
    path = tmp_path / 'unreadable'
    path.touch(0)
    assert run(f'open({str(path)!r})').reason.startswith('PermissionError')


# Requests the process ID with a 32-bit system call.
THIRTY_TWO_BITS = """
import ctypes, mmap

code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""


@needs('seccomp')
@pytest.mark.skipif(os.uname().machine != 'x86_64', reason='machine code of x86_64')
def test_system_calls_of_another_architecture_end_it(only):
    only('seccomp')
    outcome = run(f'exec({THIRTY_TWO_BITS!r})\n    return 2 * x')
    reasons = [signal.strsignal(number) for number in (signal.SIGSYS, signal.SIGSEGV)]
    assert outcome.reason in [f'the candidate has ended ({reason})' for reason in reasons]


@needs('seccomp')
def test_no_descriptor_sends_signals(only):
    only('seccomp')
    body = 'import fcntl\n    fcntl.fcntl(0, fcntl.F_SETOWN, 1)\n    return 2 * x'
    assert run(body).reason.startswith(f'OSError: [Errno {errno.ENOSYS}]')


def test_it_inherits_no_environment_directory_or_package(only, monkeypatch):
    only()
    monkeypatch.setenv('SECRET', 'secret')
    body = (
        'import os, sys\n    assert "SECRET" not in os.environ\n    assert os.listdir() == []\n'
        '    assert not [p for p in sys.path if "malora" in p or "site-packages" in p]\n'
        '    return 2 * x'
    )
    assert run(body) == CompletionOutcome(True)


def test_it_inherits_no_file(only, tmp_path):
    only()
    path = tmp_path / 'secret'
    path.write_text('secret')
    with path.open() as file:
        os.set_inheritable(file.fileno(), True)
        body = (
            'import os\n    for d in range(3, 64):\n'
            '        try: text = os.pread(d, 9, 0)\n        except OSError: continue\n'
            '        assert text != b"secret"\n    return 2 * x'
        )
        assert run(body) == CompletionOutcome(True)


def test_what_it_prints_is_lost(only, capfd):
    only()
    body = 'import os\n    for d in (1, 2): os.write(d, b"flood" * 10 ** 5)\n    return 2 * x'
    assert run(body) == CompletionOutcome(True)
    assert capfd.readouterr() == ('', '')


def test_it_is_in_a_session_of_its_own(only):
    only()
    left, right = socket.socketpair()
    program = {'program': DOUBLE.prompt, 'function': 'double'}
    with (
        right,
        left,
        sandbox.confined_process('candidate', program, QUICK, left.fileno()) as process,
    ):
        try:
            assert os.getsid(process.pid) == process.pid
        finally:
            process.kill()


def test_it_is_killed_at_the_end(only):
    only()
    begin = time.monotonic()
    outcome = run('import time; time.sleep(9)', limits=sandbox.ResourceLimits(wall_seconds=2.0))
    assert outcome == CompletionOutcome(False, 'no verdict in time')
    assert time.monotonic() - begin < 8


def test_the_examiner_notices_that_the_candidate_has_ended(only):
    only()
    outcome = run('import os; os._exit(0)', limits=sandbox.ResourceLimits(wall_seconds=6.0))
    assert outcome.reason == 'the candidate has ended (with status 0)'


def test_the_examiner_runs_no_class_that_the_prompt_imports(only):
    only()
    prompt = f'import unittest.mock\n\nAny = type(unittest.mock.ANY)\n\n\n{DOUBLE.prompt}'
    body = (
        'return -1\n\nimport confined.serialization\n'
        'confined.serialization.pack = '
        'lambda x: {"objects": [[["Any", [], None]], {"object": 0}]}\n'
    )
    outcome = run(body, Problem(prompt, DOUBLE.test, 'double'))
    assert outcome == CompletionOutcome(False, 'AssertionError')
