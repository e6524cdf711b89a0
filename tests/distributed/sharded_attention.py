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

DEVICES = 8
# Rows and heads are split, or rows and experts. Four shards cannot split the two key heads, nor the
# three rows of a prefill.
MESHES = {
    'rows and heads': (MeshConfig(2, 2, 2, 1), 4),
    'experts': (MeshConfig(2, 1, 2, 2), 4),
    'too many shards of heads': (MeshConfig(1, 2, 4, 1), 4),
    'too many shards of rows': (MeshConfig(2, 2, 2, 1), 3),
}


def main() -> None:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for backend, kernel in list(KERNELS.items()):
        KERNELS[backend] = functools.partial(kernel, interpret=True)
        attend = functools.partial(attention_backends.attend, backend)
        for name, (mesh, rows) in MESHES.items():
            packing = random_packing(
                np.random.default_rng(0),
                rows=rows,
                length=200,
                max_segments=6,
                num_heads=4,
                num_kv_heads=2,
                head_width=64,
                dtype='float32',
            )
            with use_mesh(mesh, 4):
                place = sharding.batch_sharding() if rows == 4 else None
                placed = Packing(*(jax.device_put(x, place) for x in packing))
                outputs = value_and_gradients(attend, placed)
            found.setdefault(backend, {})[name] = relative_errors(outputs, reference(packing))
    print(json.dumps(found))


if __name__ == '__main__':
    jax.config.update('jax_num_cpu_devices', DEVICES)
    main()
