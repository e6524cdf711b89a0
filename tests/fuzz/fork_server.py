"""Run attempts, with limits, in forks of a process that has imported everything.

A request is a line of JSON on stdin. It has a `directory`, and either a `command` (name and
arguments of an entry of experiments/) or a `reader` (a name in `readers.READERS`) with its `path`.
The answer is a line on stdout with `status`, `stdout`, `stderr` and `seconds`. JAX is imported, but
no backend is started before the fork, so that there are no threads whose locks could block a child.
"""

import contextlib
import json
import os
import pathlib
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

from tests.helpers.paths import ROOT

# Limits of each attempt: CPU time, address space (JAX reserves much), and elapsed time.
CPU_SECONDS = 40
ADDRESS_BYTES = 24 * 2**30
WALL_SECONDS = 240
# Message of an attempt that exceeded its time limit.
TOO_LONG = 'took too long'


class ForkServer:
    """The forking process, as a context manager."""

    def __enter__(self) -> 'ForkServer':
        environment = {
            **{name: value for name, value in os.environ.items() if not name.endswith('_KEY')},
            'PYTHONPATH': str(ROOT),
            'JAX_PLATFORMS': 'cpu',
            'HF_HUB_OFFLINE': '1',
            'OMP_NUM_THREADS': '1',
            'OPENBLAS_NUM_THREADS': '1',
        }
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'tests.fuzz.fork_server'],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def run(self, **request: Any) -> dict[str, Any]:
        """Send a request, and return the answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_attempt(json.loads(line))) + '\n')
        answers.flush()


def _attempt(request: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os._exit(_child(request, out, err))
        watch = os.pidfd_open(child)
        timed_out = not select.select([watch], [], [], WALL_SECONDS)[0]
        os.close(watch)
        if timed_out:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(10**6).decode(errors='replace'))
    if timed_out or status == -signal.SIGXCPU:
        texts[1] += TOO_LONG
    seconds = time.monotonic() - began
    return {'status': status, 'stdout': texts[0], 'stderr': texts[1], 'seconds': seconds}


def _child(request: dict[str, Any], out: Any, err: Any) -> int:
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(request['directory'])
    status = 0
    try:
        if 'reader' in request:
            from tests.fuzz import readers

            readers.READERS[request['reader']](pathlib.Path(request['path']))
        else:
            _command(request['command'])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException as error:
        from malora_jax.errors import UserError

        # Report errors as `experiments.cli` does.
        kinds = ((UserError, 2), (FloatingPointError, 1), (OSError, 1))
        known = [status for kind, status in kinds if isinstance(error, kind)]
        status = known[0] if known and 'reader' in request else 3
        if status != 3:
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _command(command: list[str]) -> None:
    name, *arguments = command
    sys.argv = [f'{name}.py', *arguments]
    runpy.run_module(f'experiments.{name}', run_name='__main__', alter_sys=True)


def _import() -> None:
    import jax  # noqa: F401

    import experiments.cli  # noqa: F401
    import malora_jax.analysis.report
    import malora_jax.benchmark.run
    import malora_jax.export.huggingface
    import malora_jax.inference
    import malora_jax.sweeps.joint
    import malora_jax.training.evaluate  # noqa: F401
    from tests.fuzz import readers  # noqa: F401


if __name__ == '__main__':
    _import()
    _serve()
