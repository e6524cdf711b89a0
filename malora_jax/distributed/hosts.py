"""The processes of a run: how they find each other, and which of them speaks and writes.

All of them compute the same program on the same mesh, each on its own devices.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from malora_jax import errors


def join(
    coordinator: str | None = None, processes: int | None = None, number: int | None = None
) -> None:
    """Waits for the other processes of the run; before anything else that uses a device.

    Without arguments JAX finds them by itself: on Cloud TPU, SLURM, Kubernetes and Open MPI.

    Args:
        coordinator: HOST:PORT of the first process.
        processes: how many there are.
        number: which of them this one is, from 0.

    Raises:
        UserError: there is nothing that names the others, or they do not come.
    """
    try:
        jax.distributed.initialize(coordinator, processes, number)
    except (RuntimeError, ValueError) as error:
        raise errors.UserError(
            f'--distributed: the other processes are not found ({str(error).splitlines()[0]}); '
            'start it with srun, on a Cloud TPU slice or in a Kubernetes job, or give '
            '--coordinator, --processes and --process.'
        ) from error


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, once for all processes."""
    if is_first():
        print(text, flush=True)


def agree(value: bool) -> bool:
    """What the first process thinks."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def meet(place: str) -> None:
    """Returns when every process has come to that place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)
