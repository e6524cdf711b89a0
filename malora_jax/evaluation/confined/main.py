"""Start of a confined process: it reads its job, gives up what it can do, then does the job."""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence

from . import landlock, libc, roles, seccomp

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    """Do the job on standard input, a JSON object.

    Its `limits` are the arguments of `_confine`; `role` names an entry of `_ROLES`, and `arguments`
    are those of that function.
    """
    job = json.load(sys.stdin)
    _confine(**job['limits'])
    _ROLES[job['role']](**job['arguments'])


def _confine(seconds: int, memory: int, layers: Sequence[str], parent: int) -> None:
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)  # SIGXCPU, then SIGKILL.
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NPROC, 0)  # Does not bind root: see seccomp.
    if sys.platform == 'linux':
        # Nothing survives the evaluation, even if that is killed.
        libc.call('prctl', _PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)
        if os.getppid() != parent:  # The evaluation was killed before that line.
            sys.exit('The evaluation has ended.')
        libc.call('prctl', _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for layer in layers:
        _apply(layer, memory)


def _apply(layer: str, memory: int) -> None:
    """Adds a protection that not every system has.

    Raises:
        OSError, ValueError: this one does not have it.
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
    """Prints, as a JSON list, those of the layers that this system has."""
    found = []
    for layer in layers:
        try:
            _apply(layer, memory)
            found.append(layer)
        except (OSError, ValueError):
            pass
    # If modules could not be read now, every candidate that imports one would be wrong.
    import colorsys  # noqa: F401
    import hashlib  # noqa: F401

    print(json.dumps(found))


_ROLES: dict[str, Callable[..., None]] = {
    'probe': _probe,
    'candidate': roles.candidate,
    'examiner': roles.examiner,
}
