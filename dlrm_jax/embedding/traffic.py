"""The collectives of a step and their bytes, as the layout of the tables determines them.

Bytes are those of a collective's result on one device, as a compiled program shows them. A
sharded block has as many slots on every shard; those that nothing is in are padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.embedding.gradient import copy_axes, is_dense, sums_are_less
from dlrm_jax.embedding.layout import Block, Layout, Slab
from dlrm_jax.embedding.optimizer import mean_of_columns, slot_shapes
from dlrm_jax.mesh import DATA, MODEL


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
        kind: as XLA names it.
        axes: of the mesh, over which it runs.
        purpose: what it carries, for people.
        nbytes: of its result on one device.
        needed: of these, those that aren't padding, on the mean shard.
    """

    kind: Literal["all-to-all", "all-gather", "all-reduce"]
    axes: tuple[str, ...]
    purpose: str
    nbytes: int
    needed: float


def collectives(
    layout: Layout,
    mesh_shape: Mapping[str, int],
    batch_size: int,
    weighted: bool = False,
    exchange_dtype: str | None = None,
) -> tuple[Collective, ...]:
    """The collectives of a lookup and an update of the tables.

    Args:
        layout: of the tables.
        mesh_shape: sizes of the mesh's axes.
        batch_size: B, over all devices.
        weighted: whether ids have weights.
        exchange_dtype: see `EmbeddingCollection`.
    """
    vectors = _vectors(layout.blocks, exchange_dtype)
    kinds = [("ids", _ids), ("weights", _weights), ("vectors", vectors), ("cotangents", vectors)]
    carried = dict(kinds if weighted else [kind for kind in kinds if kind[0] != "weights"])
    found = []
    if mesh_shape[MODEL] > 1:
        group = batch_size // mesh_shape[DATA]
        for purpose, slot_bytes in carried.items():
            here = [block for block in layout.blocks if block.slab.sharded]
            if purpose == "cotangents":
                here = [block for block in here if block.slab.optimizer]
            found.append(_of_blocks("all-to-all", (MODEL,), purpose, here, group, slot_bytes))
        found += _means(layout, batch_size)
    del carried["vectors"]
    for sharded in (True, False):
        axes = copy_axes(sharded, mesh_shape)
        if axes:
            found += _between_copies(layout, axes, batch_size, sharded, carried)
    return tuple(each for each in found if each.nbytes)


_SlotBytes = Callable[[Block], int]


def _between_copies(
    layout: Layout,
    axes: tuple[str, ...],
    batch_size: int,
    sharded: bool,
    carried: Mapping[str, _SlotBytes],
) -> list[Collective]:
    """What copies of a slab tell each other to stay equal: sums of all rows, or what each saw."""
    found, sparse = [], []
    for slab in layout.slabs:
        if slab.optimizer and slab.sharded == sharded:
            ids, bags = (batch_size * count for count in _per_sample(layout, slab))
            if sums_are_less(slab, ids, bags):
                row = slab.width * slab.vector_dtype.itemsize + 4  # its gradient; whether touched
                found.append(_of_slab(axes, f"gradients of {slab.name}", slab.rows * row))
            else:
                sparse += [block for block in layout.blocks if block.slab is slab]
    what = f"{' and '.join(carried)} of {'shards' if sharded else 'replicated tables'}"

    def slot_bytes(block: Block) -> int:
        return sum(nbytes(block) for nbytes in carried.values())

    return [*found, _of_blocks("all-gather", axes, what, sparse, batch_size, slot_bytes)]


def _means(layout: Layout, batch_size: int) -> list[Collective]:
    """Over rows whose columns are split, for optimizers that take them."""
    found = []
    for slab in layout.slabs:
        if slab.optimizer and slab.split == "columns":
            occurrences = batch_size * _per_sample(layout, slab)[0]
            rows = slab.rows if is_dense(slab, occurrences) else occurrences
            nbytes = rows * _row_means(slab) * slab.vector_dtype.itemsize
            found.append(_of_slab((MODEL,), f"means of {slab.name}", nbytes))
    return found


def _of_slab(axes: tuple[str, ...], purpose: str, nbytes: int) -> Collective:
    return Collective("all-reduce", axes, purpose, nbytes, float(nbytes))


def _of_blocks(
    kind: Literal["all-to-all", "all-gather"],
    axes: tuple[str, ...],
    purpose: str,
    blocks: Sequence[Block],
    samples: int,
    slot_bytes: _SlotBytes,
) -> Collective:
    padded = sum(b.bag.shape[1] * slot_bytes(b) for b in blocks)
    needed = sum(np.count_nonzero(b.bag >= 0) / b.bag.shape[0] * slot_bytes(b) for b in blocks)
    return Collective(kind, axes, purpose, samples * padded, float(samples * needed))


def _per_sample(layout: Layout, slab: Slab) -> tuple[int, int]:
    """Ids and bags that one shard is asked for, padding included."""
    counts = [(b.bag.shape[1], b.length) for b in layout.blocks if b.slab is slab]
    return sum(bags * length for bags, length in counts), sum(bags for bags, _ in counts)


def _ids(block: Block) -> int:
    return block.length * 4


def _weights(block: Block) -> int:
    return block.length * 4


def _vectors(blocks: Sequence[Block], exchange_dtype: str | None) -> _SlotBytes:
    own = jnp.result_type(*(block.slab.vector_dtype for block in blocks))
    itemsize = jnp.dtype(exchange_dtype or own).itemsize
    return lambda block: block.slab.width * itemsize


def _row_means(slab: Slab) -> int:
    """How often the optimizer takes a mean over a row."""
    optimizer, means = slab.optimizer, 0
    assert optimizer is not None

    def counted(x: jax.Array) -> jax.Array:
        nonlocal means
        means += 1
        return mean_of_columns(x)

    row = jax.ShapeDtypeStruct((1, slab.width), slab.vector_dtype)
    slots = slot_shapes(optimizer, 1, slab.width, slab.dtype)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    jax.eval_shape(lambda g, s, n: optimizer.update(g, s, n, counted), row, slots, step)
    return means
