"""Sharding rules: one table that maps logical axes of parameters and activations to mesh axes.

The table `RULES` shards everything: the base model, the router, the experts and the activations, by
data parallelism, FSDP, tensor parallelism and expert parallelism. Models give each axis of an array
a logical name, such as 'heads'; only this table refers to the mesh. Without a mesh, on a single
device, these functions leave arrays as they are.
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
from malora_jax.distributed.mesh import AXES

RULES: dict[str, tuple[str, ...]] = {
    # Activations. 'rows' are the rows of a batch, or the tokens of all rows concatenated.
    'rows': ('data', 'fsdp'),
    'features': (),
    'parts': (),  # Micro-batches of gradient accumulation.
    # Parameters of the base model and of adapters, and activations between two linears.
    'vocab': ('tensor',),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'norm': (),
    'tile': (),
    'layers': (),
    # 'expert' are experts, the concatenated ranks of all experts, or the router's outputs.
    'expert': ('expert',),
    'rank': (),
    'shared_rank': (),
}
GATHERED = 'gathered'


def spec(axes: Sequence[str], whole: Sequence[str] = ()) -> PartitionSpec:
    """Return the partition spec of an array.

    Args:
        axes: Logical name of each axis of the array.
        whole: Mesh axes over which the array is not sharded, whatever the table says.

    Raises:
        ValueError: A name is not in the table, or two axes are mapped to one mesh axis.
    """
    return PartitionSpec(*(over or None for over in _split(axes, whole)))


def _split(axes: Sequence[Any], whole: Sequence[str] = ()) -> list[tuple[str, ...]]:
    for axis in axes:
        if axis not in RULES:
            raise errors.unknown_name('logical axis', axis, RULES)
    found = [tuple(name for name in RULES[axis] if name not in whole) for axis in axes]
    used = [name for over in found for name in over]
    for name in used:
        if used.count(name) > 1:
            raise ValueError(f'Two of the axes {tuple(axes)} are split over mesh axis {name!r}.')
    return found


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Constrain the sharding of an activation as the table says.

    Args:
        x: Array.
        *axes: Logical name of each axis.

    Raises:
        ValueError: A name is not in the table, or two axes are mapped to one mesh axis.
    """
    return _constrain(x, spec(axes))


def is_split(axis: str) -> bool:
    """Return whether the current mesh splits a logical axis over several devices."""
    return _parts(axis) > 1


def _parts(axis: str) -> int:
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(name, 1) for name in RULES[axis])


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
    return checkpoint_name(_constrain(x, spec(axes, whole=('fsdp',))), GATHERED)


def _constrain(x: jax.Array, where: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, where) if is_mesh_set() else x


def is_mesh_set() -> bool:
    """Return whether a mesh with axes `AXES` is set; a caller's mesh without them is ignored."""
    return {*AXES} <= {*jax.sharding.get_abstract_mesh().axis_names}


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
        path: Key path of the leaf in its tree, for the message.
        leaf: Shape, boxed in `nn.LogicallyPartitioned` with the names of its axes.
        mesh: Mesh to shard over.

    Raises:
        UserError: The size of an axis is not divisible by the number of shards.
    """
    if not isinstance(leaf, nn.LogicallyPartitioned):
        return PartitionSpec()
    entries = []
    for size, over in zip(leaf.value.shape, _split(leaf.names), strict=True):
        parts = math.prod(mesh.shape[name] for name in over)
        if size > 1 and size % parts:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise errors.UserError(
                f'mesh: {name} has an axis of {size}, which cannot be split over '
                f'{" · ".join(over)} = {parts}.'
            )
        entries.append(over if over and size > 1 else None)
    return PartitionSpec(*entries)


def result_shardings(function: Callable[..., Any], *args: Any) -> Any:
    """Return the shardings of a function's results, or None if no mesh is set.

    The function is traced with `jax.eval_shape` if a mesh is set, and otherwise not called.
    """
    return shardings(jax.eval_shape(function, *args)) if is_mesh_set() else None


def abstract(boxed: Any) -> Any:
    """Return unboxed shapes, with their shardings if a mesh is set.

    Args:
        boxed: Tree of shapes with logical axis names, such as that of `abstract_variables`.

    Raises:
        UserError: The size of an axis is not divisible by the number of shards.
    """
    shapes, where = nn.unbox(boxed), shardings(boxed)
    if where is None:
        return shapes
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        where,
    )


def rows_sharding() -> NamedSharding | None:
    """Return the sharding of a batch's arrays (rows, features), or None if no mesh is set."""
    if not is_mesh_set():
        return None
    return NamedSharding(jax.sharding.get_mesh(), spec(('rows', 'features')))


def place_rows(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shard a batch by rows over the mesh, and put it on the devices.

    Without a mesh, the batch is returned unchanged.

    Args:
        batch: NumPy arrays (rows, features) of the global batch. Rows of other processes' devices
            are not read, so their values do not matter.
    """
    where = rows_sharding()
    if where is None:
        return batch
    return {
        name: jax.make_array_from_callback(rows.shape, where, rows.__getitem__)
        for name, rows in batch.items()
    }


def place_whole(tree: Any) -> Any:
    """Put a tree of NumPy arrays on the devices, replicated if a mesh is set."""
    if not is_mesh_set():
        return jax.device_put(tree)
    where = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, where, np.asarray(x).__getitem__), tree
    )


def row_readers(rows: int) -> list[set[int]]:
    """Return, for each row of a batch, the indices of the processes whose devices hold it."""
    where = rows_sharding()
    if where is None:
        return [{jax.process_index()}] * rows
    found: list[set[int]] = [set() for _ in range(rows)]
    device: Any
    for device, index in where.devices_indices_map((rows, 1)).items():
        for row in range(rows)[index[0]]:
            found[row].add(device.process_index)
    return found


def replicate(tree: Any) -> Any:
    """Replicate arrays on all devices, so that every process can read them."""
    return jax.tree.map(lambda x: _constrain(x, PartitionSpec()), tree)


def check_rows(field: str, rows: int) -> None:
    """Check that the rows of a batch split evenly over the data and FSDP axes of the current mesh.

    Args:
        field: Config field that sets the number of rows, for the message.
        rows: Number of rows.

    Raises:
        UserError: They do not split evenly.
    """
    parts = _parts('rows')
    if rows % parts:
        right = f'a multiple of mesh.data · mesh.fsdp, {parts}'
        raise errors.out_of_range(field, rows, right)
