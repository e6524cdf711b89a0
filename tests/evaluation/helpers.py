"""Helpers for the tests of the sandbox."""

import contextlib
import json
import os
import pathlib
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping

from malora_jax.evaluation import sandbox
from malora_jax.evaluation.code_execution import (
    CompletionOutcome,
    Problem,
    completion_from_text,
    run_test,
    score_completions,
)

QUICK = sandbox.ResourceLimits(cpu_seconds=1, wall_seconds=30.0, memory_bytes=1 << 28)
DOUBLE = Problem(
    'def double(x):\n    """Twice x."""\n',
    'def check(candidate):\n    for x in range(3):\n        assert candidate(x) == 2 * x\n',
    'double',
)


def run(
    body: str, problem: Problem = DOUBLE, limits: sandbox.ResourceLimits = QUICK
) -> CompletionOutcome:
    return run_test(problem, completion_from_text(problem, body), limits)


def run_all(bodies: Iterable[str], problem: Problem = DOUBLE) -> list[CompletionOutcome]:
    """Return the outcomes of many completions, run concurrently because most wait for a limit."""
    completions = [completion_from_text(problem, body) for body in bodies]
    (outcomes,) = score_completions([problem], [completions], QUICK, workers=8)
    return outcomes


def successful_lines(lines: Mapping[str, str], **values: object) -> set[str]:
    """Run lines of code in one confined process, and return the names of those that succeed."""
    attempts = [line.format(**values) for line in lines.values()]
    body = (
        f'worked = []\n    for number, line in enumerate({attempts!r}):\n'
        '        try:\n            exec(line)\n        except (OSError, AssertionError):\n'
        '            continue\n        worked.append(number)\n    raise ValueError(worked)'
    )
    reason = run(body).reason
    assert reason.startswith('ValueError: ['), reason
    names = list(lines)
    return {names[number] for number in json.loads(reason.removeprefix('ValueError: '))}


def read_targets(folder: pathlib.Path) -> dict[str, object]:
    """Return existing targets for `READS`, all readable without protection."""
    path = folder / 'secret'
    path.write_text('secret')
    packages = pathlib.Path(sysconfig.get_path('purelib', vars={'base': sys.base_prefix}))
    return {
        'path': str(path),
        'parent': os.getpid(),
        'address': id(path),
        'package': str(next((p for p in packages.rglob('*.*') if p.is_file()), path)),
        'code': __file__,
    }


def wait_for(condition, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def is_running(number: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = pathlib.Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0]
        return state not in 'ZX'
    return False


SOCKETS = {
    'internet': 'import socket; socket.socket(socket.AF_INET)',
    'local': 'import socket; socket.socketpair()',
    'raw call': 'import ctypes; assert ctypes.CDLL(None).socket(2, 1, 0) >= 0',
}
WRITES = {
    'write': 'open({path!r}, "w").close()',
    'append': 'open({path!r}, "a").close()',
    'truncate': 'import os; os.open({path!r}, os.O_TRUNC)',
    'make': 'open({path!r} + ".new", "x").close()',
    'folder': 'import os; os.mkdir({path!r} + ".folder")',
    'link': 'import os; os.symlink({path!r}, {path!r} + ".link")',
    'hard link': 'import os; os.link({path!r}, {path!r} + ".hard")',
    'mode': 'import os; os.chmod({path!r}, 0o600)',
    'time': 'import os; os.utime({path!r}, (0, 0))',
    'unnamed': 'import os; os.open("/tmp", os.O_TMPFILE | os.O_RDWR)',
    'here': 'open("here", "w").close(); import os; os.remove("here")',
    'rename': 'import os; os.rename({path!r}, {path!r} + ".old")',
    'remove': 'import os; os.remove({path!r} + ".old")',
}
READS = {
    'file': 'open({path!r}).read()',
    'listing': 'import os; os.listdir(os.path.dirname({path!r}))',
    'users': 'open("/etc/passwd").read()',
    'memory': 'f = open("/proc/{parent}/mem", "rb"); f.seek({address}); f.read(1)',
    'command line': 'open("/proc/{parent}/cmdline").read()',
    'environment': 'open("/proc/{parent}/environ").read()',
    'packages': 'open({package!r}).read()',
    'this code': 'open({code!r}).read()',
}
