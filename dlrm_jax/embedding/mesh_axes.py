"""The axes of a mesh, and their use by sharded tables.

Tables are split over one axis and copied over all others. A batch is split over that axis and the
data axes, and repeated over other axes, such as one for the tensors of a dense model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from dlrm_jax.errors import UserError


def copy_axes(
    sharded: bool, shape: Mapping[str, int], data: tuple[str, ...], model: str
) -> tuple[str, ...]:
    """Names of the axes over which copies of a slab, sharded or not, see different samples.

    ``shape`` has their sizes. Axes of one device are left out: a collective over them would still
    copy its data.
    """
    axes = data if sharded else (*data, model)
    return axes if math.prod(shape[name] for name in axes) > 1 else ()


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """A mesh with the roles of its axes.

    Attributes:
        mesh: mesh of the tables.
        data: names of the axes that batches are split over and tables are copied over, of size D.
        model: name of the axis that batches and tables are split over, of size M.

    Raises:
        UserError: the mesh lacks an axis, or the axes are of different types.
    """

    mesh: Mesh
    data: tuple[str, ...]
    model: str

    def __post_init__(self):
        names = self.split
        if len(set(names)) < len(names) or not set(names) <= set(self.mesh.axis_names):
            raise UserError(
                f"mesh: expected the axes {' and '.join(names)}, got "
                f"{', '.join(self.mesh.axis_names)}; name the mesh's own with data_axes and "
                f"model_axis, or use dlrm_jax.mesh.make_mesh"
            )
        types = {self._type(name) for name in names}
        if len(types) > 1 or AxisType.Manual in types:
            found = ", ".join(f"{name} is {self._type(name).name}" for name in names)
            raise UserError(f"mesh: expected axes that are all Auto or all Explicit, got {found}")

    def _type(self, name: str) -> AxisType:
        return self.mesh.axis_types[self.mesh.axis_names.index(name)]

    @property
    def split(self) -> tuple[str, ...]:
        """Names of the axes that a batch is split over."""
        return (*self.data, self.model)

    @property
    def groups(self) -> int:
        """D, the number of data-parallel groups."""
        return math.prod(self.mesh.shape[name] for name in self.data)

    @property
    def shards(self) -> int:
        """M, the number of shards of a group."""
        return self.mesh.shape[self.model]

    @property
    def device_count(self) -> int:
        """D · M, the number of devices that a batch is split over."""
        return self.groups * self.shards

    @property
    def batch(self) -> PartitionSpec:
        """The split of a batch's first axis."""
        return PartitionSpec(self.split)

    @property
    def per_device(self) -> PartitionSpec:
        """The split of arrays [D, M, ...] with an item for each device."""
        return PartitionSpec(self.data, self.model)

    @property
    def explicit(self) -> bool:
        """Whether the axes are of type Explicit: arrays then carry their split in their type."""
        return self._type(self.model) == AxisType.Explicit

    def place(self, tree: Any, spec: PartitionSpec) -> Any:
        """Reshards arrays of a jitted function for `jax.shard_map`.

        Axes of type Auto need only `shard_map`'s own specs.
        """
        if not self.explicit:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: jax.sharding.reshard(x, sharding), tree)

    @property
    def auto(self) -> MeshAxes:
        """The same devices with axes of type Auto, for programs outside the step."""
        if not self.explicit:
            return self
        types = (AxisType.Auto,) * len(self.mesh.axis_names)
        mesh = Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=types)
        return MeshAxes(mesh, self.data, self.model)

    def current(self) -> AbstractContextManager[Any]:
        """Makes the mesh the current one where the caller has set one with `jax.set_mesh`."""
        unset = jax.sharding.get_abstract_mesh().empty
        return contextlib.nullcontext() if unset else jax.set_mesh(self.mesh)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """The sharding of this spec on the mesh."""
        return NamedSharding(self.mesh, spec)

    def moved(self, array: Array) -> Array:
        """The array with this mesh's axis types, on the same devices; nothing is copied."""
        if isinstance(array.sharding, NamedSharding) and array.sharding.mesh != self.mesh:
            return jax.device_put(array, self.sharding(array.sharding.spec))
        return array
