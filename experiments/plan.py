r"""Print the cost of a run as one JSON object: parameters, operations and memory.

With --memory, prints instead which settings fit into that much memory: quantization of the base
model (model.quantize), rematerialization (training.remat), and the largest batch in rows.

With --topology, compiles the training step for a TPU slice or for GPUs, and adds whether it fits
into their memory, what it needs by part, what the devices exchange and, for TPUs, an estimate of
its cycles. This needs neither a TPU nor a GPU, but pip install '.[tpu-plan]' or '.[gpu-plan]'.

Examples:
    python -m experiments.plan --config=configs/quickstart.py:malora --config.model.name=llama2-7b
    python -m experiments.plan --config=configs/intra_domain.py:malora --memory=24GB
    python -m experiments.plan --config=configs/intra_domain.py:malora --topology=v5e:4x4 \
      --config.mesh.fsdp=16 --config.data.batch_size=16
    python -m experiments.plan --config=configs/intra_domain.py:malora --topology=h100:8 \
      --config.mesh.fsdp=8 --config.data.batch_size=8
"""

import json
from typing import Any

from absl import flags

from experiments import cli
from malora_jax.distributed.gpus import GPUS
from malora_jax.distributed.topology import disable_device_detection
from malora_jax.training import run_config
from malora_jax.training.memory_estimate import (
    format_estimates,
    memory_estimates,
    parse_memory_size,
)
from malora_jax.training.plan import plan
from malora_jax.training.topology_compile import compile_for_topology

_TOPOLOGY = flags.DEFINE_string(
    'topology',
    None,
    'Devices to compile the training step for, which need not be attached: a TPU slice, such as '
    f'v5e:4x4, or a number of GPUs, such as h100:8. GPUs: {", ".join(GPUS)}. Adds the memory, '
    'communication and (TPU only) cycles of a step.',
)
_MEMORY = flags.DEFINE_string(
    'memory',
    None,
    'Memory of one device, such as 24GB or 16GiB: print which quantization, rematerialization and '
    'batch size fit into it, instead of the cost.',
)


def main(config: dict[str, Any]) -> None:
    """Compute the plan, and print it."""
    if _TOPOLOGY.value is not None:
        disable_device_detection()
    run = run_config(config)
    if _MEMORY.value is None:
        found = plan(run)
        if _TOPOLOGY.value is not None:
            found['topology'] = compile_for_topology(run, _TOPOLOGY.value)
        print(json.dumps(found, indent=2))
        return
    memory = parse_memory_size(_MEMORY.value)
    print(format_estimates(run, memory_estimates(run, memory), memory))


if __name__ == '__main__':
    cli.run(main)
