"""Attention kernels on meshes of eight fake devices, compared with a single device.

`python -m tests.distributed.sharded_attention` prints a JSON object: the largest errors of the
value and the gradients, by backend and mesh.
"""

import functools
import json

import jax
import numpy as np

from malora_jax.benchmark.attention_check import (
    Packing,
    random_packing,
    reference,
    relative_errors,
    value_and_gradients,
)
from malora_jax.distributed import sharding
from malora_jax.distributed.mesh import MeshConfig, use_mesh
from malora_jax.models import attention_backends
from malora_jax.models.attention_backends import KERNELS

DEVICES, ROWS = 8, 4
# Rows and heads are split, or heads alone. With four shards, the two key heads are not split.
MESHES = {
    'rows and heads': MeshConfig(2, 2, 2, 1),
    'experts': MeshConfig(2, 1, 2, 2),
    'too many shards': MeshConfig(1, 2, 4, 1),
}


def main() -> None:
    packing = random_packing(
        np.random.default_rng(0),
        rows=ROWS,
        length=200,
        max_segments=6,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        dtype='float32',
    )
    expected = reference(packing)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for backend, kernel in list(KERNELS.items()):
        KERNELS[backend] = functools.partial(kernel, interpret=True)
        attend = functools.partial(attention_backends.attend, backend)
        for name, mesh in MESHES.items():
            with use_mesh(mesh, ROWS):
                place = sharding.batch_sharding()
                placed = Packing(*(jax.device_put(x, place) for x in packing))
                outputs = value_and_gradients(attend, placed)
            found.setdefault(backend, {})[name] = relative_errors(outputs, expected)
    print(json.dumps(found))


if __name__ == '__main__':
    jax.config.update('jax_num_cpu_devices', DEVICES)
    main()
