r"""Print the cost of a run as one JSON object: parameters, operations and memory.

With --memory, prints instead which settings fit into that much memory: quantization of the base
model (model.quantize), rematerialization (training.remat), and the largest batch in rows.

With --topology, adds the TPU compiler's estimates for the training step on such a TPU slice:
memory, communication and cycles. This needs no TPU, but pip install '.[tpu-plan]'.

Examples:
    python -m experiments.plan --config=configs/quickstart.py:malora --config.model.name=llama2-7b
    python -m experiments.plan --config=configs/intra_domain.py:malora --memory=24GB
    python -m experiments.plan --config=configs/intra_domain.py:malora --topology=v5e:4x4 \
      --config.mesh.fsdp=16 --config.data.batch_size=16
"""

import json
from typing import Any

from absl import flags

from experiments import cli
from malora_jax.distributed.topology import disable_tpu_detection
from malora_jax.training import run_config
from malora_jax.training.memory_estimate import (
    format_estimates,
    memory_estimates,
    parse_memory_size,
)
from malora_jax.training.plan import plan
from malora_jax.training.tpu_compile import compile_for_topology

_TOPOLOGY = flags.DEFINE_string(
    'topology',
    None,
    "TPU topology, such as v5e:4x4 or v5p:2x2x2: add the TPU compiler's estimates of the memory, "
    'communication and cycles of a training step. Needs no TPU.',
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
        disable_tpu_detection()
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
