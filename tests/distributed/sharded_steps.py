"""Five training steps on meshes of eight fake devices and on a single one, method by method.

`python -m tests.distributed.sharded_steps CASES` prints a JSON line for each mesh and method. It
holds the largest relative differences of the losses, of the fifth step's gradients and of the
adapter, and the output shapes of the collectives. CASES is a JSON object: by method, the sizes of
the axes of each mesh, by its name.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.base_structure import SubspaceStructure
from malora_jax.adapters.rank_experts import RankExperts
from malora_jax.distributed import hlo, sharding
from malora_jax.distributed.mesh import MeshConfig, use_mesh
from malora_jax.frames import call_with_room
from malora_jax.models.decoder import Decoder, abstract_variables
from malora_jax.training.state import abstract_state
from malora_jax.training.step import make_train_step
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model
from tests.helpers.steps import make_hyperparameters, new_state, record_gradients

DEVICES, STEPS, TASKS = 8, 5, 2
BASE = {'vocab_size': 320, 'head_width': 22, 'hidden': 104}
# With these shapes, no activation has the shape of a kernel. With few tokens, few choices of
# experts are so close that rounding could change them.
LENGTH = 20
ROWS = [[10, 6], [15], [4, 4, 4], [15, 5], [5, 10], [20], [8, 8], [2, 3, 4]]
# SGD keeps rounding errors of a gradient small, whereas Adam amplifies them.
OPTIMIZER = optax.sgd(1e-3)


def train_five_steps(
    model: Decoder, variables: Any, seed: int = 0
) -> tuple[list[float], Any, Any, str]:
    """Return the losses, the last gradients, the adapter, and the compiled step's HLO text."""
    optimizer = record_gradients(OPTIMIZER)
    boxed = sharding.shardings(abstract_variables(model))
    params = variables['params']
    if boxed is not None:
        params = jax.device_put(params, boxed['params'])
    state = jax.tree.map(
        lambda shape, leaf: jax.device_put(leaf, shape.sharding),
        abstract_state(model, optimizer, params),
        new_state(variables, optimizer),
    )
    train_step = make_train_step(
        model,
        optimizer,
        optax.constant_schedule(1e-3),
        TASKS,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    batch = sharding.shard_batch(packed_batch(ROWS, LENGTH, num_tasks=TASKS))
    hyperparameters = sharding.put_replicated(make_hyperparameters(model.adapter, seed=seed))
    compiled = train_step.lower(state, params, batch, hyperparameters).compile()
    losses = []
    for _ in range(STEPS):
        state, metrics = compiled(state, params, batch, hyperparameters)
        losses.append(float(metrics['loss']))
    gradients, _ = state.opt_state
    return losses, jax.device_get(gradients), jax.device_get(state.adapter), compiled.as_text()


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference of any leaf, relative to the leaf's largest entry."""
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


def collectives(text: str) -> dict[str, list[tuple[int, ...]]]:
    """Return the output shapes of the collectives, by kind."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for each in hlo.Program(text).collectives():
        found.setdefault(each.kind, []).extend(array.shape for array in each.arrays)
    return found


# Dropout masks of published code: method and changed setting, by the name of a case.
MASKS: dict[str, tuple[str, dict[str, Any]]] = {
    'masks of experts': ('alora', {'dropout_masks': 'expert'}),
    'masks of cores': ('comol', {'core_dropout': 0.05}),
}


def method_with_distinct_ranks(name: str) -> AdapterConfig:
    """Return the method with ranks that differ from all dimensions of `BASE` kernels and shards.

    Shapes alone then identify the arrays that collectives send.
    """
    name, changes = MASKS.get(name, (name, {}))
    structure, shared = small_method(name).structure, 0
    if isinstance(structure, RankExperts):
        # Seven ranks on each of four devices.
        return small_method(name, dropout=0.05, num_experts=28, shared_rank=28)
    if isinstance(structure, SubspaceStructure):
        shared = 20 if name == 'malora_unshared' else 10
    elif structure.subspace_rank:
        shared = 7
    return small_method(name, dropout=0.05, rank=7, shared_rank=shared, **changes)


def main(cases: dict[str, dict[str, list[int]]]) -> None:
    for name, meshes in cases.items():
        model = tiny_model(method_with_distinct_ranks(name), **BASE).clone(remat='light')
        variables = random_variables(model)
        expected = train_five_steps(model, variables)
        for mesh, sizes in meshes.items():
            with use_mesh(MeshConfig(*sizes), len(ROWS)):
                found = train_five_steps(model, variables)
            line = {
                'mesh': mesh,
                'method': name,
                'losses': difference(jnp.array(found[0]), jnp.array(expected[0])),
                'gradients': difference(found[1], expected[1]),
                'adapter': difference(found[2], expected[2]),
                'collectives': collectives(found[3]),
            }
            print(json.dumps(line), flush=True)


if __name__ == '__main__':
    jax.config.update('jax_num_cpu_devices', DEVICES)
    call_with_room(lambda: main(json.loads(sys.argv[1])))
