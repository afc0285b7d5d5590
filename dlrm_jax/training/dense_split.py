"""The split of dense arrays over all devices: gradients, optimizer state, parameters.

An array is split by its shape alone, so that a parameter, its gradient and the state that an
optimizer keeps for it are split alike: along the first axis that D·M divides; or along two, of
which D divides one and M the other; or not at all, and then it is whole on each device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.errors import UserError

Shape = Sequence[int]


def is_split(axes: MeshAxes, shape: Shape) -> bool:
    """Whether an array of this shape is split."""
    return _places(axes, shape) is not None


def check_split(groups: int, shards: int, shapes: Sequence[Shape]) -> None:
    """Checks that some parameters of these shapes are split over D groups of M shards.

    Raises:
        UserError: none is.
    """
    if not any(split_axes(groups, shards, shape) for shape in shapes):
        raise UserError(
            f"shard_dense_optimizer: expected layers with a width that {groups * shards} devices "
            f"divide, or two that the {groups} groups and {shards} shards divide, got "
            f"parameters of the shapes {', '.join(map(str, sorted(map(tuple, shapes))))}; choose "
            f"other widths or another mesh, or leave it out"
        )


def spec(axes: MeshAxes, shape: Shape) -> PartitionSpec:
    """The split of an array of this shape."""
    places = _places(axes, shape)
    if places is None:
        return PartitionSpec()
    names: list[tuple[str, ...]] = [()] * len(shape)
    for place, name in (*((places[0], name) for name in axes.data), (places[1], axes.model)):
        if axes.mesh.shape[name] > 1:  # as XLA names the split of a step's results
            names[place] += (name,)
    return PartitionSpec(*(own or None for own in names))


def sharding(axes: MeshAxes, shape: Shape) -> NamedSharding:
    """The same as a sharding."""
    return axes.sharding(spec(axes, shape))


def block_shape(axes: MeshAxes, shape: Shape) -> tuple[int, ...]:
    """The shape of a device's part of an array of this shape."""
    return sharding(axes, shape).shard_shape(tuple(shape))


def specs(axes: MeshAxes, tree: Any) -> Any:
    """Shapes and dtypes of a tree's arrays, with the shardings that split them."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(axes, x.shape)), tree
    )


def constrained(axes: MeshAxes, tree: Any) -> Any:
    """The arrays of a tree, split; nothing is sent of those that are whole on each device."""
    shardings = jax.tree.map(lambda x: sharding(axes, x.shape), tree)
    return jax.lax.with_sharding_constraint(tree, shardings)


def blocks(axes: MeshAxes, x: Shaped[Array, "*shape"]) -> Shaped[Array, "devices k"]:
    """The part of each device of an array that is split, in the order of the devices."""
    cut, order = _cut(axes, x.shape)
    return x.reshape(cut).transpose(order).reshape(axes.device_count, -1)


def joined(
    axes: MeshAxes, blocks: Shaped[Array, "devices k"], shape: Shape
) -> Shaped[Array, "*shape"]:
    """The array of this shape with these `blocks`."""
    cut, order = _cut(axes, shape)
    back = sorted(range(len(order)), key=order.__getitem__)
    return blocks.reshape([cut[i] for i in order]).transpose(back).reshape(shape)


def split_axes(groups: int, shards: int, shape: Shape) -> tuple[int, int] | None:
    """The axes of an array that are split over the groups and over the shards; None if none are.

    Args:
        groups: number D of data-parallel groups.
        shards: number M of shards of a group.
        shape: shape of the array.
    """
    if groups * shards == 1 or not math.prod(shape):
        return None
    for place, size in enumerate(shape):
        if size % (groups * shards) == 0:
            return place, place
    for of_groups, of_shards in itertools.permutations(range(len(shape)), 2):
        if shape[of_groups] % groups == 0 and shape[of_shards] % shards == 0:
            return of_groups, of_shards
    return None


def _places(axes: MeshAxes, shape: Shape) -> tuple[int, int] | None:
    return split_axes(axes.groups, axes.shards, shape)


def _cut(axes: MeshAxes, shape: Shape) -> tuple[list[int], list[int]]:
    """The shape with axes of groups and shards of their own; and its axes, these two first."""
    places = _places(axes, shape)
    assert places is not None
    cut: list[int] = []
    first = [0, 0]
    for place, size in enumerate(shape):
        for i, count in enumerate((axes.groups, axes.shards)):
            if places[i] == place:
                first[i] = len(cut)
                cut.append(count)
                size //= count
        cut.append(size)
    return cut, [*first, *(i for i in range(len(cut)) if i not in first)]
