"""A sandbox for generated code: Python processes that can compute, and do little else.

A confined process starts in its own session, in an empty temporary directory, with a minimal
environment and only Python's standard library. Before any untrusted code runs, it restricts itself
irrevocably:

* Resource limits bound its processor time, memory and open files, and forbid any write to a file.
* On Linux, a seccomp filter blocks all but about fifty system calls: no new process or thread, no
  socket, no signal to another process, no change to a file, and no privileges, even for root.
* On Linux with Landlock, it can read only the standard library, the system's libraries and the time
  zones.

The sandbox needs no privileges. A confined process has no children, so killing it leaves nothing
behind. On Linux it also dies with the thread that started it; the next evaluation removes the empty
directory that then remains. `probe_protections` reports which restrictions a system supports.

Known limits: a confined process can see whether a file exists, and the system's name, load and
clock. It can read files that the distribution installs under /usr/lib. The kernel itself is
trusted. On systems other than Linux, generated code can do whatever its user can, within the
resource limits.

Harmless programs also fail if they need threads, processes, files or network connections. asyncio
works, with timers but without connections.

In this package, a layer is a restriction that not every system supports: 'memory', 'landlock' or
'seccomp'.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malora_jax.errors import UserError, check_types, out_of_range

# Import `confined` as a top-level package, so that nothing else of malora_jax is loaded. Its folder
# is removed from sys.path right afterwards. Until then it comes last, so that no module next to
# `confined` hides a module of the standard library with the same name.
_BOOTSTRAP = """
import sys
sys.path.append(sys.argv[1])
from confined.main import main
sys.path.pop()
main()
"""
_FOLDER = pathlib.Path(__file__).parent
# Ignore installed packages and modules of the current directory.
_OPTIONS = ('-s', '-S', '-P', '-X', 'utf8')
# A fixed hash seed makes the order of sets reproducible. LOGNAME is for programs that ask for the
# user's name, because the sandbox may block the lookup in /etc/passwd.
_ENVIRONMENT = {'PYTHONHASHSEED': '0', 'LOGNAME': 'user'}
_MIN_MEMORY_BYTES = 1 << 27
# Prefix of temporary directories, by which later evaluations find those of killed evaluations.
_PREFIX = 'malora-sandbox-'


@dataclasses.dataclass(frozen=True)
class ResourceLimits:
    """Resource limits of one confined process.

    Attributes:
        cpu_seconds: Maximum processor time in seconds. It does not depend on the machine's load.
        wall_seconds: Maximum wall time since the start in seconds. It also stops a program that
            only sleeps, and so uses no processor time.
        memory_bytes: Maximum address space in bytes, including that of the interpreter.

    Raises:
        UserError: The value of a field has the wrong type or is out of range.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        check_types('limits', self)
        if self.cpu_seconds < 1:
            raise out_of_range('limits.cpu_seconds', self.cpu_seconds, 'at least 1')
        if self.wall_seconds <= 0:
            raise out_of_range('limits.wall_seconds', self.wall_seconds, 'more than 0')
        if self.memory_bytes < _MIN_MEMORY_BYTES:
            right = f'at least {_MIN_MEMORY_BYTES:,}, for the interpreter itself'
            raise out_of_range('limits.memory_bytes', self.memory_bytes, right)


@dataclasses.dataclass(frozen=True)
class Protections:
    """Restrictions that the sandbox can enforce on this system, besides time and file size limits.

    Attributes:
        memory: Whether `ResourceLimits.memory_bytes` is enforced.
        processes: Whether starting, signaling and tracing processes and threads is blocked. If not,
            a resource limit still keeps users other than root from starting processes.
        network: Whether opening sockets is blocked.
        writing: Whether creating, changing and removing files is blocked.
        reading: Whether reading is restricted to the libraries of the interpreter and the system,
            and the time zones.
    """

    memory: bool
    processes: bool
    network: bool
    writing: bool
    reading: bool


def probe_protections() -> Protections:
    """Return the restrictions that this system supports, which results should record.

    The first call starts a confined process that tries them; later calls reuse its result.

    Raises:
        UserError: Generated code would run as root without the seccomp filter.
        OSError: Confined processes do not work on this system.
    """
    layers = _probe_layers()
    seccomp = 'seccomp' in layers
    return Protections('memory' in layers, seccomp, seccomp, seccomp, 'landlock' in layers)


@functools.cache
def _probe_layers() -> tuple[str, ...]:
    """Return the names of the layers that this system supports.

    A layer is a restriction that not every system supports: 'memory', 'landlock' or 'seccomp'.

    Raises:
        UserError: Generated code would run as root without the seccomp filter.
        OSError: Confined processes do not work on this system.
    """
    _remove_abandoned()
    limits = ResourceLimits()
    layers_to_try = ('memory', 'landlock', 'seccomp') if sys.platform == 'linux' else ('memory',)
    arguments = {'memory': limits.memory_bytes, 'layers': layers_to_try}
    pipe = subprocess.PIPE
    with _start_process('probe', arguments, limits, (), (), stdout=pipe, stderr=pipe) as process:
        output, errors = process.communicate()
    if process.returncode:
        raise OSError(f'A confined process does not work here: {errors.decode()}')
    layers = tuple(json.loads(output))
    if 'seccomp' not in layers and os.geteuid() == 0:
        raise UserError(
            'This system does not support seccomp filters, without which code that runs as root is '
            'not confined: score generated code as another user.'
        )
    return layers


def confined_process(
    role: str,
    arguments: Mapping[str, Any],
    limits: ResourceLimits,
    channel: int,
    stdout: int = subprocess.DEVNULL,
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a confined process as a context manager, which kills it on exit.

    Args:
        role: Key of `_ROLES` in `confined.main`, which maps it to a function.
        arguments: JSON-serializable arguments of that function by name, without `channel`.
        limits: Resource limits of the process.
        channel: Descriptor of a socket, which the process inherits.
        stdout: Destination of the process's standard output, as in `subprocess.Popen`.

    Raises:
        UserError: Generated code would run as root without the seccomp filter.
        OSError: Confined processes do not work on this system.
    """
    arguments = {**arguments, 'channel': channel}
    return _start_process(
        role, arguments, limits, _probe_layers(), (channel,), stdout, subprocess.DEVNULL
    )


@contextlib.contextmanager
def _start_process(
    role: str,
    arguments: Mapping[str, Any],
    limits: ResourceLimits,
    layers: Sequence[str],
    descriptors: Sequence[int],
    stdout: int,
    stderr: int,
) -> Iterator[subprocess.Popen[bytes]]:
    confinement = {
        'seconds': limits.cpu_seconds,
        'memory': limits.memory_bytes,
        'layers': layers,
        'parent': os.getpid(),
    }
    job = {'limits': confinement, 'role': role, 'arguments': arguments}
    with tempfile.TemporaryFile() as stdin, _empty_directory() as directory:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        with subprocess.Popen(
            [sys.executable, *_OPTIONS, '-c', _BOOTSTRAP, str(_FOLDER)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=directory,
            env=_ENVIRONMENT,
            pass_fds=descriptors,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _empty_directory() -> Iterator[str]:
    directory, lock = _make_directory()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _make_directory() -> tuple[str, int]:
    """Make and lock a temporary directory; the lock ends with this process, even if it is killed.

    Returns:
        Path of the directory, and descriptor that holds the lock.
    """
    while True:
        directory = tempfile.mkdtemp(prefix=_PREFIX)
        # Until the directory is locked, another process may remove it as abandoned.
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(directory, fcntl.LOCK_SH)
            if os.path.exists(directory):
                return directory, lock
            os.close(lock)


def _remove_abandoned() -> None:
    """Remove the empty directories that killed evaluations left behind."""
    for directory in pathlib.Path(tempfile.gettempdir()).glob(f'{_PREFIX}*'):
        # Directories in use are locked, and those of other users cannot be removed.
        with contextlib.suppress(OSError):
            lock = _lock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                directory.rmdir()
            finally:
                os.close(lock)


def _lock(directory: str | pathlib.Path, mode: int) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
