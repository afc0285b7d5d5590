"""Comparison of the copies of an array that several devices hold.

Every device updates its own copy of a table with the same numbers. On GPUs atomic additions may
come in another order on each, and a fault of memory changes one copy alone. Nothing else would
notice: each sample reads the copy of its own group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.errors import UserError

# One for each axis, so that the factor of each element depends on where it is.
_FACTORS = (2654435761, 2246822519, 3266489917)


# Elements that are summed at a time: a chunk stays in a processor's cache. Of large arrays more, as
# each chunk is a program of its own on an accelerator. XLA would copy a whole array on a CPU.
_ELEMENTS = 2**16
_CHUNKS = 2**11


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
        UserError: copies differ; the message has the texts of their arrays.
    """
    found = _unequal(mesh, arrays)
    if found:
        raise UserError(
            f"the copies of {' and of '.join(found)} differ between devices, though all are "
            f"updated alike; {_remedy(mesh.devices.flat[0].platform)}, and if it happens again, "
            f"test the machine's memory"
        )


def _remedy(platform: str) -> str:
    if platform == "gpu":
        return (
            "XLA sums scatters with atomics on GPUs unless XLA_FLAGS has "
            "--xla_gpu_deterministic_ops=true: set it, resume from the last checkpoint"
        )
    return "resume from the last checkpoint"


def _unequal(mesh: Mesh, arrays: Mapping[str, Sequence[Array]]) -> list[str]:
    copied = [
        (text, array) for text, own in arrays.items() for array in own if _copy_axes(mesh, array)
    ]
    if not copied:
        return []
    specs = tuple(_spec(array) for _, array in copied)
    sums = np.asarray(_exchange(mesh, specs)(*(array for _, array in copied)))
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
        sums = jnp.stack([checksum(x) for x in arrays])
        return jax.lax.all_gather(sums, mesh.axis_names)

    # The check can't know that what is gathered is equal on all devices.
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    )


def checksum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """The sum of an array's bits mod 2³², each number times an odd one that depends on its place.

    The order of summation doesn't change it; one changed number does.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = x if x.ndim else x[None]
    elements = max(_ELEMENTS, x.size // _CHUNKS)
    length = min(len(x), max(1, elements // max(1, math.prod(x.shape[1:]))))

    def weighted(start: int | Array, length: int) -> UInt32[Array, "..."]:
        bits = _bits(jax.lax.dynamic_slice_in_dim(x, start, length))
        place = jnp.asarray(start, jnp.uint32) * np.uint32(_FACTORS[0])
        for axis in range(bits.ndim):
            number = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place = place + number * np.uint32(_FACTORS[axis % len(_FACTORS)])
        return bits * (2 * place + 1)

    chunks = len(x) // length if length else 0
    zero = jnp.zeros(jax.eval_shape(lambda: weighted(0, length)).shape, jnp.uint32)
    sums = jax.lax.fori_loop(0, chunks, lambda i, sums: sums + weighted(i * length, length), zero)
    rest = weighted(chunks * length, len(x) - chunks * length)
    return jnp.sum(sums, dtype=jnp.uint32) + jnp.sum(rest, dtype=jnp.uint32)


def _bits(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of each number; 64 of them, or complex parts, are numbers along a new axis."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
