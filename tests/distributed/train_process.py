"""One of several processes that train a small run together.

`python -m tests.distributed.train_process PORT PROCESSES PROCESS WEIGHTS WORKDIR STEP [METHOD
[CHANGES [--saved]]]` starts a process with two fake devices. The arguments from WEIGHTS on are
those of `tests.helpers.runs`.
"""

import sys

import jax

from malora_jax.distributed import hosts
from tests.helpers import runs

if __name__ == '__main__':
    port, processes, process, *rest = sys.argv[1:]
    jax.config.update('jax_num_cpu_devices', 2)
    hosts.initialize(f'127.0.0.1:{port}', int(processes), int(process))
    runs.main(*rest)
