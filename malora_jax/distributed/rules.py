"""What is split over which axes of the mesh: one table for parameters and activations.

Parameters and activations name their axes by what they are; only this table knows of devices.
Where no mesh is set, on one device, nothing here does anything.
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
    # Of activations: rows, or the tokens of all rows one after the other.
    'rows': ('data', 'fsdp'),
    'features': (),
    'parts': (),  # Of a step, one after the other.
    # Of the base and of the factors; activations between two linears have these, too.
    'vocab': ('tensor',),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'norm': (),
    'tile': (),
    'layers': (),
    # Experts, or their ranks stacked one after the other, and the router's outputs.
    'expert': ('expert',),
    'rank': (),
    'shared_rank': (),
}
GATHERED = 'gathered'


def spec(axes: Sequence[str], whole: Sequence[str] = ()) -> PartitionSpec:
    """The mesh axes of an array.

    Args:
        axes: the logical name of each of its axes.
        whole: mesh axes over which it is not split, whatever the table says.

    Raises:
        ValueError: a name that is not in the table, or two that go to one mesh axis.
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
    """x, split as the table says."""
    return _constrain(x, spec(axes))


def is_split(axis: str) -> bool:
    """Whether several devices have parts of an axis of this name here."""
    return _parts(axis) > 1


def _parts(axis: str) -> int:
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(name, 1) for name in RULES[axis])


def gather(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """A parameter where it is used: whole over `fsdp`, which only stores it in parts.

    It has the name `GATHERED`, so that it is gathered again for the backward pass, not kept.
    """
    if not is_mesh_set():
        return x
    return checkpoint_name(_constrain(x, spec(axes, whole=('fsdp',))), GATHERED)


def _constrain(x: jax.Array, where: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, where) if is_mesh_set() else x


def is_mesh_set() -> bool:
    """Whether arrays are split over a mesh of ours here; another's axes are not our business."""
    return {*AXES} <= {*jax.sharding.get_abstract_mesh().axis_names}


def shardings(boxed: Any) -> Any:
    """Where each leaf of a tree is: a tree of shardings, or None where no mesh is set.

    Args:
        boxed: shapes with their logical axis names, as `abstract_variables` gives them.

    Raises:
        UserError: as for `leaf_spec`.
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
    """The mesh axes of a leaf; one without names is whole everywhere, as is an axis of one.

    Args:
        path: of the leaf, as JAX's trees have it.
        leaf: its shape, boxed with the names of its axes.
        mesh: whose sizes count.

    Raises:
        UserError: an axis that cannot be split into equal parts, with the leaf's path.
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
    """`shardings` of what a function returns; it is not even traced where no mesh is set."""
    return shardings(jax.eval_shape(function, *args)) if is_mesh_set() else None


def abstract(boxed: Any) -> Any:
    """Shapes without boxes, and where they are to be if a mesh is set."""
    shapes, where = nn.unbox(boxed), shardings(boxed)
    if where is None:
        return shapes
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        where,
    )


def rows_sharding() -> NamedSharding | None:
    """Of arrays (rows, features), or None where no mesh is set."""
    if not is_mesh_set():
        return None
    return NamedSharding(jax.sharding.get_mesh(), spec(('rows', 'features')))


def place_rows(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch whose rows are split over the mesh; as it is where none is set.

    Args:
        batch: arrays (rows, features) with all rows; those that no device here has may be anything.
    """
    where = rows_sharding()
    if where is None:
        return batch
    return {
        name: jax.make_array_from_callback(rows.shape, where, rows.__getitem__)
        for name, rows in batch.items()
    }


def place_whole(tree: Any) -> Any:
    """Return NumPy arrays as arrays on the devices, whole on each of them where a mesh is set."""
    if not is_mesh_set():
        return jax.device_put(tree)
    where = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, where, np.asarray(x).__getitem__), tree
    )


def row_readers(rows: int) -> list[set[int]]:
    """By row of a batch, the processes whose devices have it."""
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
    """Arrays whole on every device, so that every process can read them."""
    return jax.tree.map(lambda x: _constrain(x, PartitionSpec()), tree)


def check_rows(field: str, rows: int) -> None:
    """Checks that rows can be split over the mesh that is set.

    Raises:
        UserError: they cannot.
    """
    parts = _parts('rows')
    if rows % parts:
        right = f'a multiple of mesh.data · mesh.fsdp, {parts}'
        raise errors.out_of_range(field, rows, right)
