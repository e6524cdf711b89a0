"""Entry point of a confined process: read the job, apply the restrictions, then run the job."""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence

from . import landlock, libc, roles, seccomp

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    """Run the job described by the JSON object on standard input.

    The object has three fields. `limits` holds the arguments of `_confine`. `role` is a key of
    `_ROLES`, and selects the function to run. `arguments` holds the arguments of this function.
    """
    job = json.load(sys.stdin)
    _confine(**job['limits'])
    _ROLES[job['role']](**job['arguments'])


def _confine(seconds: int, memory: int, layers: Sequence[str], parent: int) -> None:
    """Restrict this process irrevocably.

    Args:
        seconds: Maximum processor time in seconds.
        memory: Maximum address space in bytes.
        layers: Restrictions that this system supports: 'memory', 'landlock' and 'seccomp'.
        parent: Id of the process that started this one, to detect whether it has already ended.
    """
    # The kernel sends SIGXCPU at the soft limit, and SIGKILL at the hard limit.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NPROC, 0)  # Does not apply to root, whom seccomp restricts.
    if sys.platform == 'linux':
        # The kernel kills this process when the evaluation ends, even if that is killed.
        libc.call('prctl', _PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)
        if os.getppid() != parent:  # The evaluation had ended before the prctl call.
            sys.exit('The evaluation has ended.')
        libc.call('prctl', _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for layer in layers:
        _apply(layer, memory)


def _apply(layer: str, memory: int) -> None:
    """Apply a layer, which is a restriction that not every system supports.

    Args:
        layer: 'memory', 'landlock' or 'seccomp'.
        memory: Maximum address space in bytes.

    Raises:
        OSError, ValueError: The system does not support it.
    """
    if layer == 'memory':
        _limit(resource.RLIMIT_AS, memory)
    elif layer == 'landlock':
        landlock.apply()
    else:
        seccomp.apply()


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    _, highest = resource.getrlimit(kind)
    values = [soft, soft if hard is None else hard]
    if highest != resource.RLIM_INFINITY:
        values = [min(value, highest) for value in values]
    resource.setrlimit(kind, (values[0], values[1]))


def _probe(memory: int, layers: Sequence[str]) -> None:
    """Try to apply restrictions, and print the names of those that this system supports.

    Prints a JSON list.

    Args:
        memory: Maximum address space in bytes.
        layers: Restrictions to try: 'memory', 'landlock' and 'seccomp'.
    """
    supported = []
    for layer in layers:
        try:
            _apply(layer, memory)
            supported.append(layer)
        except (OSError, ValueError):
            pass
    # The probe must fail if the restrictions block imports, because candidates need imports.
    import colorsys  # noqa: F401
    import hashlib  # noqa: F401

    print(json.dumps(supported))


_ROLES: dict[str, Callable[..., None]] = {
    'probe': _probe,
    'candidate': roles.run_candidate,
    'examiner': roles.run_examiner,
}
