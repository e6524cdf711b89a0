"""The LoRA of one task, from an adapter that has parameters for each task (MTL-LoRA)."""

from typing import Any

import jax

from malora_jax import errors
from malora_jax.adapters import method
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.adapters.trees import layer_tree, linear_leaves
from malora_jax.distributed import sharding
from malora_jax.models.decoder import Decoder, abstract_variables


def task_lora(model: Decoder, variables: Any, task: str = '') -> tuple[Decoder, Any]:
    """Return the decoder with the LoRA of one task, and its variables.

    Args:
        model: Decoder, with or without an adapter.
        variables: Variable collections of the decoder.
        task: Name of the task; '' if the adapter has parameters for only one task, or if it has
            none for tasks. In the latter case, the arguments are returned.

    Raises:
        UserError: The task is missing or unknown, or the adapter has no parameters for tasks.
    """
    adapter = model.adapter
    tasks = adapter.tasks if adapter is not None else ()
    if task and not tasks:
        raise errors.UserError(
            f'The model has the same parameters for all tasks: leave out the task {task!r}.'
        )
    if adapter is None or not tasks:
        return model, variables
    if not task and len(tasks) > 1:
        raise adapter.missing_task()
    if task and task not in tasks:
        raise errors.unknown_name('task', task, tasks)
    lora = model.clone(
        adapter=method(
            'lora',
            rank=adapter.structure.rank,
            alpha=adapter.alpha,
            rank_stabilized=adapter.rank_stabilized,
            dropout=adapter.dropout,
            targets=adapter.targets,
        )
    )
    shardings = sharding.shardings(abstract_variables(lora)['adapter'])
    project = jax.jit(_lora_leaves, static_argnums=0, out_shardings=shardings)
    trained = {name: leaves for name, leaves in variables.items() if name != 'params'}
    leaves = project(model, trained, tasks.index(task) if task else 0)
    return lora, {'params': variables['params'], 'adapter': leaves}


def _lora_leaves(model: Decoder, variables: Any, task: jax.Array) -> Any:
    """Return collection `adapter` of the LoRA of a task, given by its index."""
    adapter = model.adapter
    assert adapter is not None
    found = {}
    with jax.default_matmul_precision('highest'):
        for linear in adapter.targets:
            down_L1DR, up_LTRF = adapter.structure.projections(linear_leaves(variables, linear))
            factors = down_L1DR, up_LTRF[:, task][:, None]
            found[linear] = dict(zip(IndependentExperts.factors, factors, strict=True))
    return layer_tree(found)
