"""A sandbox for generated code: Python processes that can compute, and little else.

A confined process starts in a session of its own, in an empty temporary directory, with an empty
environment and Python's standard library only. Before anything untrusted runs it gives up for good

* more than so much processor time, memory and open files, and any byte written to a file;
* on Linux, by a seccomp filter, all but some fifty system calls: no new process or thread, no
  socket, no signal to another process, no file changed, no privilege, even for root;
* on Linux with Landlock, reading anything but the standard library, the system's libraries and the
  time zones.

This takes no privilege. There are no children, so killing the process leaves nothing behind. On
Linux it also dies with the thread that started it; the empty directory that is then left is removed
by the next evaluation. `protections` tells which of these a system has.

What stays open: that a file exists and the system's name, load and clock can be seen, what the
distribution keeps under /usr/lib can be read, and the kernel itself is trusted. On other systems
than Linux generated code can do whatever its user can, within the limits.

Honest programs that need what is taken away fail: threads, processes, files and connections of
their own. asyncio works, with timers but without connections.
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

# The package is imported from its own folder, to load nothing else of malora_jax. The folder comes
# last, as it may hold names of the standard library, and is taken off again.
_START = """
import sys
sys.path.append(sys.argv[1])
from confined.main import main
sys.path.pop()
main()
"""
_FOLDER = pathlib.Path(__file__).parent
# No packages, nor modules of the current directory; sets in the same order each time.
_OPTIONS = ('-s', '-S', '-P', '-X', 'utf8')
# Programs may ask for the name of their user, which would else be looked up in /etc/passwd.
_ENVIRONMENT = {'PYTHONHASHSEED': '0', 'LOGNAME': 'user'}
_LEAST_MEMORY = 1 << 27
# Of the names of temporary directories, by which later evaluations find those of killed ones.
_PREFIX = 'malora-sandbox-'


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one confined process may use.

    Attributes:
        cpu_seconds: processor time; does not depend on what else the machine does.
        wall_seconds: time from its start on, as a program may also sleep.
        memory_bytes: address space, the interpreter's own included.

    Raises:
        UserError: a value that cannot be, by its field.
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
        if self.memory_bytes < _LEAST_MEMORY:
            right = f'at least {_LEAST_MEMORY:,}, for the interpreter itself'
            raise out_of_range('limits.memory_bytes', self.memory_bytes, right)


@dataclasses.dataclass(frozen=True)
class Protections:
    """What this system lets the sandbox enforce, besides limits on time and file sizes.

    Attributes:
        memory: no more than `Limits.memory_bytes`.
        processes: no process or thread is started, signalled or traced. Without it, the limit of
            processes still stops a user other than root from starting any.
        network: no socket is opened.
        writing: no file is made, changed or removed.
        reading: no file is read but the interpreter's and the system's libraries.
    """

    memory: bool
    processes: bool
    network: bool
    writing: bool
    reading: bool


def protections() -> Protections:
    """What holds on this system, found out by trying; results should carry it.

    Raises:
        UserError: this would run generated code as root without protection.
        OSError: confined processes do not work here.
    """
    layers = _layers()
    seccomp = 'seccomp' in layers
    return Protections('memory' in layers, seccomp, seccomp, seccomp, 'landlock' in layers)


@functools.cache
def _layers() -> tuple[str, ...]:
    _remove_abandoned()
    limits = Limits()
    wanted = ('memory', 'landlock', 'seccomp') if sys.platform == 'linux' else ('memory',)
    arguments = {'memory': limits.memory_bytes, 'layers': wanted}
    pipe = subprocess.PIPE
    with _started('probe', arguments, limits, (), (), stdout=pipe, stderr=pipe) as process:
        output, errors = process.communicate()
    if process.returncode:
        raise OSError(f'A confined process does not work here: {errors.decode()}')
    layers = tuple(json.loads(output))
    if 'seccomp' not in layers and os.geteuid() == 0:
        raise UserError('This system cannot confine root: score generated code as another user.')
    return layers


def confined(
    role: str,
    arguments: Mapping[str, Any],
    limits: Limits,
    channel: int,
    stdout: int = subprocess.DEVNULL,
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A confined process, killed at the end.

    Args:
        role: name of a function of `confined.roles`.
        arguments: its arguments but `channel`, as JSON can hold them.
        limits: what it may use.
        channel: descriptor of a socket, which it inherits.
        stdout: where its output goes, as for `subprocess.Popen`.

    Raises:
        UserError, OSError: as `protections`.
    """
    arguments = {**arguments, 'channel': channel}
    return _started(role, arguments, limits, _layers(), (channel,), stdout, subprocess.DEVNULL)


@contextlib.contextmanager
def _started(
    role: str,
    arguments: Mapping[str, Any],
    limits: Limits,
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
            [sys.executable, *_OPTIONS, '-c', _START, str(_FOLDER)],
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
    """Make a temporary directory and lock it; a lock ends with its process, even a killed one."""
    while True:
        directory = tempfile.mkdtemp(prefix=_PREFIX)
        # Until it is locked, another process may take it for abandoned.
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
