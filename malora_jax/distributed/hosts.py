"""Multi-process (multi-host) runs: initialization, printing, progress and synchronization.

All processes run the same program on one mesh (SPMD), each on its own devices. The first process
prints and writes files for all.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from malora_jax import errors
from malora_jax.progress import ProgressBar


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connect to the other processes of the run (`jax.distributed.initialize`).

    Call this before anything that uses a device. Without arguments, JAX detects the cluster: Cloud
    TPU, SLURM, Kubernetes or Open MPI.

    Args:
        coordinator: Address HOST:PORT of the first process.
        num_processes: Number of processes.
        process_id: Index of this process, from 0.

    Raises:
        UserError: No cluster is detected, or the other processes do not connect in time.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise errors.UserError(
            '--distributed: cannot connect to the other processes '
            f'({str(error).splitlines()[0]}); start the command with srun, on a Cloud TPU slice or '
            'in a Kubernetes job, or give --coordinator, --processes and --process.'
        ) from error


def is_first_process() -> bool:
    """Return whether this is the first process, which prints and writes files for all."""
    return jax.process_index() == 0


def print_on_first(text: str) -> None:
    """Print a line, in the first process only."""
    if is_first_process():
        print(text, flush=True)


def progress_bar(label: str | None, total: int, unit: str, done: float = 0) -> ProgressBar:
    """Return a progress bar that only the first process shows.

    Args:
        label: Name of the computation; None to show nothing.
        total: Amount of work, in units.
        unit: Name of a unit, in the singular.
        done: Amount of work that is already done.
    """
    return ProgressBar(label if is_first_process() else None, total, unit, done)


def broadcast_from_first(value: bool) -> bool:
    """Return the first process's value in every process; all processes must call this function."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def barrier(name: str) -> None:
    """Wait until all processes have called this function with the same name.

    Args:
        name: Name of the barrier.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
