"""The key of routed ids: collections with the same one send the same ids to the same places."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.state import RoutedIds
from dlrm_jax.embedding.table import Lookup
from dlrm_jax.errors import UserError


def routing_key(layout: Layout, lookups: Sequence[Lookup], axes: MeshAxes) -> str:
    """The same for collections whose routed ids mean the same; id maps aren't compared.

    Arrays of equal shapes don't tell one's routed ids from another's.

    Args:
        layout: layout of the tables.
        lookups: lookups in the order of the layout.
        axes: axes of the mesh.
    """
    described = [(x.name, x.table, x.pooling) for x in lookups]
    own = layout.key, described, layout.columns, layout.bags, axes.groups, axes.shards
    found = hashlib.blake2b(repr(own).encode(), digest_size=8)
    for x in layout.blocks:
        found.update(repr((x.slab.name, x.column.shape, x.distinct)).encode())
        for array in (x.bag, x.column, x.limit, x.modulus, x.residue, x.offset):
            found.update(array.tobytes())
    return found.hexdigest()


def check_routed(routed: RoutedIds, key: str) -> None:
    """Checks that a collection of this `routing_key` has routed the ids.

    Raises:
        UserError: one of another key has.
    """
    if routed.routing != key:
        raise UserError(
            "routed: expected ids that this collection has routed, got those of one with other "
            "tables, lookups, plan or mesh; call route or lookup of this collection"
        )
