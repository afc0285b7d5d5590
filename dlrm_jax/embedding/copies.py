"""Comparison of the copies of an array that several devices hold.

Every device updates its own copy of a table with the same numbers, which it sums in the same order.
A fault of memory changes one copy alone. Nothing else would notice: each sample reads the copy of
its own group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from dlrm_jax.embedding.checksum import checksum
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.errors import CopiesDifferError


def of_tables(layout: Layout, state: EmbeddingState) -> dict[str, list[Array]]:
    """The arrays of each slab, by a text that names its tables."""
    layout.check(state)
    return {
        f"table(s) {', '.join(slab.tables)}": [
            state.tables[slab.name],
            *state.slots.get(slab.name, {}).values(),
        ]
        for slab in layout.slabs
    }


def check_copies(mesh: Mesh, arrays: Mapping[str, Sequence[Array]]) -> None:
    """Checks that the copies of each array are equal, bit by bit.

    Each device sums the bits of its arrays, and one small collective exchanges the sums. Arrays
    without copies aren't read; without any, nothing runs. All processes call it together.

    Args:
        mesh: mesh that the arrays lie on.
        arrays: arrays on that mesh, or on one device, which has no copies, by a text for the
            message. Random keys and complex numbers are compared by their bits, too.

    Raises:
        CopiesDifferError: copies differ; the message has the texts of their arrays.
    """
    found = _unequal(mesh, arrays)
    if found:
        raise CopiesDifferError(
            f"the copies of {' and of '.join(found)} differ between devices, though all are "
            f"updated alike; resume from the last checkpoint, and if it happens again, test the "
            f"machine's memory"
        )


def _unequal(mesh: Mesh, arrays: Mapping[str, Sequence[Array]]) -> list[str]:
    copied = [
        (text, array) for text, own in arrays.items() for array in own if _copy_axes(mesh, array)
    ]
    if not copied:
        return []
    specs = tuple(_spec(array) for _, array in copied)
    exchanged = _exchange(mesh, specs)(*(array for _, array in copied))
    sums = np.asarray(jax.block_until_ready(exchanged))  # on all devices, not the first alone
    sums = sums.reshape(*mesh.devices.shape, -1)
    found = {}  # a set in order
    for i, (text, array) in enumerate(copied):
        axes = _copy_axes(mesh, array)
        first = tuple(slice(1 if name in axes else None) for name in mesh.axis_names)
        if (sums[..., i] != sums[(*first, i)]).any():
            found[text] = None
    return list(found)


def _spec(array: Array) -> PartitionSpec:
    assert isinstance(array.sharding, NamedSharding)  # JAX places nothing else on several devices
    return array.sharding.spec


def _copy_axes(mesh: Mesh, array: Array) -> tuple[str, ...]:
    """Names of the axes that an array is copied over; none if they have one device."""
    if len(array.sharding.device_set) == 1:
        return ()
    split: set[str | None] = set()
    for axes in _spec(array):
        split |= set(axes) if isinstance(axes, tuple) else {axes}
    copied = tuple(name for name in mesh.axis_names if name not in split)
    return copied if math.prod(mesh.shape[name] for name in copied) > 1 else ()


@functools.lru_cache(maxsize=8)
def _exchange(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> jax.stages.Wrapped:
    def run(*arrays: Array) -> UInt32[Array, "devices n"]:
        # Half of the bits are enough here, and take half of the time.
        sums = jnp.concatenate([checksum(x, words=1) for x in arrays])
        return jax.lax.all_gather(sums, mesh.axis_names)

    # The check can't know that what is gathered is equal on all devices.
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    )
