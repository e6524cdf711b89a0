"""A process of a small run that several share: `loop_helpers.py`'s arguments after its own three.

`python one_of_several.py PORT PROCESSES PROCESS WEIGHTS WORKDIR STEP [METHOD [CHANGES [--saved]]]`,
two fake devices each.
"""

import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'training'))

import loop_helpers

from malora_jax.distributed import hosts

if __name__ == '__main__':
    port, processes, process, *rest = sys.argv[1:]
    jax.config.update('jax_num_cpu_devices', 2)
    hosts.join(f'127.0.0.1:{port}', int(processes), int(process))
    loop_helpers.main(*rest)
