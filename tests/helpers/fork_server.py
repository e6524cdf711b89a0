"""Commands in forks of a process that has imported everything, which saves seconds at each start.

A request is a line of JSON on stdin, as `ForkServer.run` writes it. The answer is a line on stdout
with the exit `status`, `stdout`, and `stderr`. JAX is imported, but no backend is started before
the fork, so that there are no threads whose locks could block a child.
"""

import atexit
import contextlib
import functools
import gc
import importlib
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
import traceback
from collections.abc import Mapping
from typing import Any

from tests.helpers.paths import ROOT

# With these, all modules are imported that commands need.
IMPORTED = (
    'experiments.cli',
    'malora_jax.analysis.report',
    'malora_jax.benchmark.run',
    'malora_jax.export.huggingface',
    'malora_jax.inference',
    'malora_jax.sweeps.joint',
    'malora_jax.training.evaluate',
    'malora_jax.ultralink.stages',
)
# Limits of the CPU time and of the address space (JAX reserves much) of a limited command.
CPU_SECONDS = 40
ADDRESS_BYTES = 24 * 2**30
# Message of a command that exceeded a time limit.
TOO_LONG = 'took too long'


class ForkServer:
    """The forking process, as a context manager.

    Args:
        environment: Environment variables of the commands.
    """

    def __init__(self, environment: Mapping[str, str]):
        self._environment = {**environment, 'PYTHONPATH': str(ROOT)}

    def __enter__(self) -> 'ForkServer':
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'tests.helpers.fork_server'],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def run(
        self,
        module: str,
        *arguments: str,
        directory: pathlib.Path = ROOT,
        timeout: float = 240,
        limited: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a module as `python -m` does.

        Args:
            module: Name of the module.
            *arguments: Its command-line arguments.
            directory: Working directory.
            timeout: Seconds after which the command is killed.
            limited: Whether to limit the CPU time and the address space, too.
        """
        assert self._process.stdin and self._process.stdout
        request = dict(
            module=module,
            arguments=arguments,
            directory=str(directory),
            timeout=timeout,
            limited=limited,
        )
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        status, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess([module, *arguments], status, out, err)


def run_module(
    module: str, *arguments: str, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a module as `python -m` does, in the project's root.

    One process serves consecutive calls with equal environment variables.

    Args:
        module: Name of the module.
        *arguments: Its command-line arguments.
        timeout: Seconds after which the command is killed.
        **environment: Further environment variables.
    """
    variables = {**os.environ, **environment}
    variables.pop('PYTEST_CURRENT_TEST', None)
    server = _server_with(tuple(sorted(variables.items())))
    return server.run(module, *arguments, timeout=timeout)


_running = contextlib.ExitStack()
atexit.register(_running.close)


@functools.lru_cache(maxsize=1)
def _server_with(variables: tuple[tuple[str, str], ...]) -> ForkServer:
    """Start a server, and end the one before it."""
    _running.close()
    return _running.enter_context(ForkServer(dict(variables)))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + '\n')
        answers.flush()


def _answer(request: dict[str, Any]) -> tuple[int, str, str]:
    """Run a command in a fork, and return its status and what it wrote to stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os._exit(_child(request, out.fileno(), err.fileno()))
        watch = os.pidfd_open(child)
        timed_out = not select.select([watch], [], [], request['timeout'])[0]
        os.close(watch)
        if timed_out:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors='replace'))
    if timed_out or status == -signal.SIGXCPU:
        texts[1] += TOO_LONG
    return status, texts[0], texts[1]


def _child(request: dict[str, Any], out: int, err: int) -> int:
    """Run a command in this process, and return its status unless it ends the process itself."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    if request['limited']:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(request['directory'])
    sys.argv = ['', *request['arguments']]
    status = 0
    try:
        runpy.run_module(request['module'], run_name='__main__', alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        status = 1
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


if __name__ == '__main__':
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # Collections in a fork would copy the pages of all imported objects.
    _serve()
