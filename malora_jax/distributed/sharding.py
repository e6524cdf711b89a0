"""Sharding rules: one table that maps logical axes of parameters and activations to mesh axes.

The table `LOGICAL_AXIS_RULES` shards everything: the base model, the router, the experts and the
activations, by data parallelism, FSDP, tensor parallelism and expert parallelism. Models give each
axis of an array a logical name, such as 'heads'; only this table refers to the mesh. Without a
mesh, on a single device, these functions leave arrays as they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from malora_jax import errors
from malora_jax.distributed.mesh import MESH_AXES

LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
    # Activations. 'rows' are the rows of a batch, or the tokens of all rows concatenated.
    'rows': ('data', 'fsdp'),
    'features': (),
    'parts': (),  # Micro-batches of gradient accumulation.
    # Parameters of the base model and of adapters, and activations between two linear layers.
    'vocab': ('tensor',),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'norm': (),
    'tile': (),
    'layers': (),
    # Axes with the name 'expert' hold experts, the concatenated ranks of all experts, or the
    # router's outputs.
    'expert': ('expert',),
    'up_expert': ('expert',),  # Up-projections with a router of their own.
    'rank': (),
    'shared_rank': (),
    'task': (),
}
GATHERED = 'gathered'


def partition_spec(axes: Sequence[str], replicated_over: Sequence[str] = ()) -> PartitionSpec:
    """Return the partition spec of an array.

    Args:
        axes: Logical name of each axis of the array.
        replicated_over: Mesh axes over which the array is not sharded, even if `LOGICAL_AXIS_RULES`
            maps one of its axes to them.

    Raises:
        ValueError: A name is not in `LOGICAL_AXIS_RULES`, or two axes are mapped to one mesh axis.
    """
    return PartitionSpec(*(mesh_axes or None for mesh_axes in _mesh_axes(axes, replicated_over)))


def divisible_spec(shape: Sequence[int], axes: Sequence[str]) -> PartitionSpec:
    """Return the partition spec of an activation, in which axes that do not divide are replicated.

    Args:
        shape: Shape of the activation.
        axes: Logical name of each axis.
    """
    return partition_spec(
        [
            axis if size % _num_shards(axis) == 0 else 'features'
            for size, axis in zip(shape, axes, strict=True)
        ]
    )


def _mesh_axes(axes: Sequence[Any], replicated_over: Sequence[str] = ()) -> list[tuple[str, ...]]:
    for axis in axes:
        if axis not in LOGICAL_AXIS_RULES:
            raise errors.unknown_name('logical axis', axis, LOGICAL_AXIS_RULES)
    names_by_axis = [
        tuple(name for name in LOGICAL_AXIS_RULES[axis] if name not in replicated_over)
        for axis in axes
    ]
    used = [name for names in names_by_axis for name in names]
    for name in used:
        if used.count(name) > 1:
            raise ValueError(f'Two of the axes {tuple(axes)} are split over mesh axis {name!r}.')
    return names_by_axis


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Constrain the sharding of an activation as `LOGICAL_AXIS_RULES` says.

    Args:
        x: Array.
        *axes: Logical name of each axis.

    Raises:
        ValueError: A name is not in `LOGICAL_AXIS_RULES`, or two axes are mapped to one mesh axis.
    """
    return _constrain(x, partition_spec(axes))


def is_sharded(axis: str) -> bool:
    """Return whether the current mesh splits a logical axis over several devices."""
    return _num_shards(axis) > 1


def _num_shards(axis: str) -> int:
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(name, 1) for name in LOGICAL_AXIS_RULES[axis])


def gather(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Gather a parameter over the FSDP axis before use; other mesh axes keep it sharded.

    The result carries the checkpoint name `GATHERED`, so that rematerialization policies gather it
    again in the backward pass instead of saving it.

    Args:
        x: Parameter.
        axes: Logical name of each axis.
    """
    if not is_mesh_set():
        return x
    return checkpoint_name(_constrain(x, partition_spec(axes, replicated_over=('fsdp',))), GATHERED)


def _constrain(x: jax.Array, pspec: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, pspec) if is_mesh_set() else x


def is_mesh_set() -> bool:
    """Return whether a mesh with axes `MESH_AXES` is set; other meshes are ignored."""
    return {*MESH_AXES} <= {*jax.sharding.get_abstract_mesh().axis_names}


def shardings(boxed: Any) -> Any:
    """Return the sharding of each leaf of a tree, or None if no mesh is set.

    Args:
        boxed: Tree of shapes with logical axis names, such as that of `abstract_variables`.

    Raises:
        UserError: The size of an axis is not divisible by the number of shards.
    """
    if not is_mesh_set():
        return None
    mesh = jax.sharding.get_mesh()
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(path, leaf, mesh)),
        boxed,
        is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
    )


def leaf_spec(path: Any, leaf: Any, mesh: Any) -> PartitionSpec:
    """Return the partition spec of a leaf.

    Leaves without axis names are replicated, as are axes of size 1.

    Args:
        path: Key path of the leaf in its tree, for the error message.
        leaf: Shape, boxed in `nn.LogicallyPartitioned` with the names of its axes.
        mesh: Mesh to shard over.

    Raises:
        UserError: The size of an axis is not divisible by the number of shards.
    """
    if not isinstance(leaf, nn.LogicallyPartitioned):
        return PartitionSpec()
    entries = []
    for size, mesh_axes in zip(leaf.value.shape, _mesh_axes(leaf.names), strict=True):
        num_shards = math.prod(mesh.shape[name] for name in mesh_axes)
        if size > 1 and size % num_shards:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise errors.UserError(
                f'mesh: {name} has an axis of size {size}, which is not divisible by '
                f'{" · ".join(mesh_axes)} = {num_shards}.'
            )
        entries.append(mesh_axes if mesh_axes and size > 1 else None)
    return PartitionSpec(*entries)


def result_shardings(function: Callable[..., Any], *args: Any) -> Any:
    """Return the shardings of a function's results, or None if no mesh is set.

    The function is traced with `jax.eval_shape` if a mesh is set, and otherwise not called.
    """
    return shardings(jax.eval_shape(function, *args)) if is_mesh_set() else None


def sharded_shapes(boxed: Any) -> Any:
    """Return unboxed shapes, with their shardings if a mesh is set.

    Args:
        boxed: Tree of shapes with logical axis names, such as that of `abstract_variables`.

    Raises:
        UserError: The size of an axis is not divisible by the number of shards.
    """
    shapes, tree_shardings = nn.unbox(boxed), shardings(boxed)
    if tree_shardings is None:
        return shapes
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        tree_shardings,
    )


def batch_sharding() -> NamedSharding | None:
    """Return the sharding of a batch's arrays (rows, features), or None if no mesh is set."""
    if not is_mesh_set():
        return None
    return NamedSharding(jax.sharding.get_mesh(), partition_spec(('rows', 'features')))


def shard_batch(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shard a batch by rows over the mesh, and put it on the devices.

    Without a mesh, the batch is returned unchanged.

    Args:
        batch: NumPy arrays (rows, features) of the global batch. Rows of other processes' devices
            are not read, so their values do not matter.
    """
    sharding = batch_sharding()
    if sharding is None:
        return batch
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
        for name, rows in batch.items()
    }


def put_replicated(tree: Any) -> Any:
    """Put a tree of NumPy arrays on the devices, replicated if a mesh is set."""
    if not is_mesh_set():
        return jax.device_put(tree)
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__), tree
    )


def row_processes(rows: int) -> list[set[int]]:
    """Return, for each row of a batch, the indices of the processes whose devices hold it."""
    sharding = batch_sharding()
    if sharding is None:
        return [{jax.process_index()}] * rows
    processes: list[set[int]] = [set() for _ in range(rows)]
    device: Any
    for device, index in sharding.devices_indices_map((rows, 1)).items():
        for row in range(rows)[index[0]]:
            processes[row].add(device.process_index)
    return processes


def replicate(tree: Any) -> Any:
    """Replicate arrays on all devices, so that every process can read them."""
    return jax.tree.map(lambda x: _constrain(x, PartitionSpec()), tree)


def check_rows_divisible(field: str, rows: int) -> None:
    """Check that the rows of a batch split evenly over the data and FSDP axes of the current mesh.

    Args:
        field: Config field that sets the number of rows, for the error message.
        rows: Number of rows.

    Raises:
        UserError: The rows do not split evenly over these axes.
    """
    num_shards = _num_shards('rows')
    if rows % num_shards:
        right = f'a multiple of mesh.data · mesh.fsdp, {num_shards}'
        raise errors.out_of_range(field, rows, right)
