"""GPUs of this machine, found without starting JAX, so that each run of a sweep gets its own."""

import pathlib
from collections.abc import Sequence

from malora_jax.errors import UserError

_DEVICES = pathlib.Path('/dev')


def check(gpus: Sequence[str]) -> None:
    """Check the GPUs that a command names for its processes.

    Args:
        gpus: Numbers of GPUs, as given on the command line.

    Raises:
        UserError: An item is not a number, occurs twice, or is not a GPU of this machine.
    """
    if not gpus:
        return
    for gpu in gpus:
        if not (gpu.isascii() and gpu.isdecimal()) or gpus.count(gpu) > 1:
            requirement = 'it must list different GPU numbers, such as 0,1'
            raise UserError(f'--gpus has {gpu!r}; {requirement}.')
    # The Windows Subsystem for Linux has one device file for all GPUs, so they cannot be counted.
    count = len(list(_DEVICES.glob('nvidia[0-9]*')))
    if (_DEVICES / 'dxg').exists() and not count:
        return
    for gpu in gpus:
        if len(gpu) > 9 or int(gpu) >= count:
            raise UserError(
                f'--gpus has {gpu[:20]}; this machine has {count} NVIDIA GPUs, numbered from 0.'
            )
