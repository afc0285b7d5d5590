"""The collectives of a step and their bytes, computed from the layout of the tables.

Bytes are those of a collective's results on one device, as a compiled program shows them. A
sharded block has equally many bag positions on every shard; empty ones are padding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.embedding import owner_exchange
from dlrm_jax.embedding.layout import Block, Layout
from dlrm_jax.embedding.mesh_axes import copy_axes
from dlrm_jax.embedding.row_gradients import Reduction, reduction
from dlrm_jax.embedding.row_optimizer import mean_of_columns, slot_shapes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.mesh import DATA, MODEL


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
        kind: XLA's name of the operation.
        axes: mesh axes that it runs over.
        purpose: description of its contents, for people.
        nbytes: bytes of its results in a step on one device.
        needed: bytes of the results that aren't padding, averaged over the shards.
        has_room: whether the padding is room for more rows than the plan expects.
        stage: stage of the work on tables that sends it, one of `STAGES` in `planning.program`;
            "model" for the rest of a step.
        starts: number of times that it runs in a step, each with an equal part of the bytes.
    """

    kind: Literal["all-to-all", "all-gather", "all-reduce", "reduce-scatter"]
    axes: tuple[str, ...]
    purpose: str
    nbytes: int
    needed: float
    has_room: bool = False
    stage: str = "model"
    starts: int = 1


_AXES = (DATA,), MODEL
_ALL = (DATA, MODEL)


def collectives(
    layout: Layout,
    mesh_shape: Mapping[str, int],
    batch_size: int,
    weighted: bool = False,
    comm_dtype: str | None = None,
    micro_batches: int = 1,
    clipped: bool = False,
    all_rows: bool = False,
) -> tuple[Collective, ...]:
    """The collectives of a lookup and an update of the tables.

    Args:
        layout: layout of the tables.
        mesh_shape: sizes of the mesh's axes, by name.
        batch_size: samples of a batch, over all devices.
        weighted: whether ids have weights.
        comm_dtype: dtype of vectors and cotangents between devices; None keeps their dtype.
        micro_batches: number of lookups that share an update.
        clipped: whether the norm of all gradients is taken; only that of fully sharded slabs is
            counted here.
        all_rows: whether an update changes all rows, see `Workload`.
    """
    own = jnp.result_type(*(block.slab.vector_dtype for block in layout.blocks))
    width = jnp.dtype(comm_dtype or own).itemsize
    of_ids = [_Carried("ids", "ids", 4, lambda block: block.length)]
    if weighted:
        of_ids.append(of_ids[0]._replace(what="id weights"))
    vectors = _Carried("vectors", "vectors", width, lambda block: block.slab.width)
    cotangents = vectors._replace(what="cotangents", stage="cotangents")
    found = []
    if mesh_shape[MODEL] > 1:
        group = batch_size // mesh_shape[DATA]
        for each in (*of_ids, vectors, cotangents):
            here = [block for block in layout.blocks if block.slab.sharded]
            if each is cotangents:
                here = [block for block in here if block.slab.optimizer]
            what, of_position, stage = each.what, each.nbytes, each.stage
            moved = _of_blocks("all-to-all", (MODEL,), what, here, group, of_position, stage)
            found.append(dataclasses.replace(moved, starts=micro_batches))
        found += _means(layout, mesh_shape, batch_size, all_rows)
    found += _with_owners(layout, mesh_shape, batch_size, comm_dtype, micro_batches, clipped)
    for sharded in (True, False):
        if copy_axes(sharded, mesh_shape, *_AXES):
            carried = [*of_ids, cotangents]
            found += _between_copies(layout, mesh_shape, batch_size, sharded, carried)
    return tuple(each for each in found if each.nbytes)


class _Carried(NamedTuple):
    """A kind of number in an exchange: its bytes, and how many a bag position of a block has.

    Shards exchange it in its stage. Copies gather what an update reads, in the update.
    """

    what: str
    stage: str
    width: int
    numbers: Callable[[Block], int]

    def nbytes(self, block: Block) -> int:
        return self.width * self.numbers(block)


def _between_copies(
    layout: Layout,
    mesh_shape: Mapping[str, int],
    batch_size: int,
    sharded: bool,
    carried: Sequence[_Carried],
) -> list[Collective]:
    """Collectives that keep the copies of slabs equal: of summed rows, or of cotangents."""
    axes = copy_axes(sharded, mesh_shape, *_AXES)
    found, sparse = [], []
    for slab in layout.slabs:
        if slab.optimizer and slab.sharded == sharded and not slab.fully_sharded:
            if _reduction(layout, slab, mesh_shape, batch_size).exchanged:
                row = (slab.width + 1) * slab.vector_dtype.itemsize  # gradient; whether touched
                found.append(_of_slab(axes, f"gradients of {slab.name}", slab.rows * row))
            else:
                sparse += [block for block in layout.blocks if block.slab is slab]
    for width in sorted({each.width for each in carried}):
        together = [each for each in carried if each.width == width]
        what = ", ".join(each.what for each in together)
        purpose = f"{what} of {'shards' if sharded else 'copies'}"

        def nbytes(block: Block, together: Sequence[_Carried] = together) -> int:
            return sum(each.nbytes(block) for each in together)

        found.append(_of_blocks("all-gather", axes, purpose, sparse, batch_size, nbytes))
    return found


def _with_owners(
    layout: Layout,
    mesh_shape: Mapping[str, int],
    batch_size: int,
    comm_dtype: str | None,
    micro_batches: int,
    clipped: bool,
) -> list[Collective]:
    """Collectives of the first round of each `owner_exchange` of a fully sharded slab.

    "Needed" are the rows of different ids as far as the plan expects them.
    """
    found: list[Collective] = []
    merged: set[str] = set()  # askers whose requests of all micro-batches are made one
    norm: list[Collective] = []  # one of all slabs
    devices = math.prod(mesh_shape[axis] for axis in _ALL)
    for slab in layout.slabs if devices > 1 else ():
        if not slab.fully_sharded:
            continue
        distinct = layout.distinct(slab)
        own, sent = slab.vector_dtype.itemsize, jnp.dtype(comm_dtype or slab.vector_dtype).itemsize
        stored = sent if slab.dtype.itemsize == own else slab.dtype.itemsize
        ids = batch_size // devices * _per_sample(layout, slab)[0]
        one = ids // micro_batches
        # XLA sends the same row numbers once: to fetch rows, to send their gradients, and for
        # tables of the same rows that the same ids read.
        asker = layout.askers[slab.name]
        moved = _of_request(mesh_shape, one, distinct, "ids") if asker == slab.name else []
        moved += _of_stages(mesh_shape, one, distinct, "rows", slab.width * stored, "vectors")
        found += [
            dataclasses.replace(
                each,
                nbytes=micro_batches * each.nbytes,
                needed=micro_batches * each.needed,
                starts=micro_batches,
            )
            for each in moved
        ]
        if slab.optimizer:
            nbytes, stage = slab.width * sent, "cotangents"
            back = _of_stages(mesh_shape, ids, distinct, "gradients of rows", nbytes, stage)
            if clipped:
                found += back
                norm = [_of_slab(_ALL, "norm", own)]
            if micro_batches > 1 and asker not in merged:  # by the first trained slab
                merged.add(asker)
                back += _of_request(mesh_shape, ids, distinct, stage)
            found += back
    return found + norm


def _of_request(
    mesh_shape: Mapping[str, int], ids: int, distinct: tuple[float, float], stage: str
) -> list[Collective]:
    """The collectives that ask owners for the rows of so many ids of a device."""
    found = _of_stages(mesh_shape, ids, distinct, "row numbers", 4, stage)
    stages = owner_exchange.stages(mesh_shape, *_AXES, ids, distinct)
    if not owner_exchange.is_bounded(stages, ids):
        found.append(_of_slab(_ALL, "limits", 4 * stages[0].partners, stage))
    return found


def _of_stages(
    mesh_shape: Mapping[str, int],
    ids: int,
    distinct: tuple[float, float],
    what: str,
    nbytes: int,
    stage: str,
) -> list[Collective]:
    """A round's all-to-alls of so many bytes for each row, for so many ids of a device."""
    found = []
    for each in owner_exchange.stages(mesh_shape, *_AXES, ids, distinct):
        in_group = MODEL in each.axes
        where, share = (
            ("in the group", distinct[0]) if in_group else ("between groups", distinct[1])
        )
        rows, needed, purpose = each.partners * each.capacity, share * ids, f"{what} {where}"
        found.append(
            Collective(
                "all-to-all", each.axes, purpose, rows * nbytes, needed * nbytes, True, stage
            )
        )
    return found


def _means(
    layout: Layout, mesh_shape: Mapping[str, int], batch_size: int, all_rows: bool
) -> list[Collective]:
    """Collectives of the means over rows whose columns are split, if the optimizer takes them."""
    found = []
    for slab in layout.slabs:
        if slab.optimizer and slab.split == "columns":
            dense = all_rows or _reduction(layout, slab, mesh_shape, batch_size).dense
            rows = slab.rows if dense else batch_size * _per_sample(layout, slab)[0]
            nbytes = rows * _row_means(slab) * slab.vector_dtype.itemsize
            found.append(_of_slab((MODEL,), f"means of {slab.name}", nbytes))
    return found


def _of_slab(axes: tuple[str, ...], purpose: str, nbytes: int, stage: str = "update") -> Collective:
    return Collective("all-reduce", axes, purpose, nbytes, float(nbytes), stage=stage)


def _of_blocks(
    kind: Literal["all-to-all", "all-gather"],
    axes: tuple[str, ...],
    purpose: str,
    blocks: Sequence[Block],
    samples: int,
    of_position: Callable[[Block], int],
    stage: str = "update",
) -> Collective:
    padded = sum(b.bag.shape[1] * of_position(b) for b in blocks)
    needed = sum(np.count_nonzero(b.bag >= 0) / b.bag.shape[0] * of_position(b) for b in blocks)
    return Collective(kind, axes, purpose, samples * padded, float(samples * needed), stage=stage)


def _per_sample(layout: Layout, slab: Slab) -> tuple[int, int]:
    """Ids and bags of a sample that one shard looks up, padding included."""
    counts = [(b.bag.shape[1], b.length) for b in layout.blocks if b.slab is slab]
    return sum(bags * length for bags, length in counts), sum(bags for bags, _ in counts)


def _reduction(
    layout: Layout, slab: Slab, mesh_shape: Mapping[str, int], batch_size: int
) -> Reduction:
    """The way in which `coalesce` sums the gradients of a slab."""
    ids, bags = (batch_size * count for count in _per_sample(layout, slab))
    copies = math.prod(mesh_shape[axis] for axis in copy_axes(slab.sharded, mesh_shape, *_AXES))
    return reduction(slab.rows, slab.width, ids, bags, copies, slab.needs_sums(False))


def _row_means(slab: Slab) -> int:
    """The number of means over a row that an update takes."""
    optimizer, means = slab.optimizer, 0
    assert optimizer is not None

    def counted(x: jax.Array) -> jax.Array:
        nonlocal means
        means += 1
        return mean_of_columns(x)

    row = jax.ShapeDtypeStruct((1, slab.width), slab.vector_dtype)
    optimizer_slots = slot_shapes(optimizer, 1, slab.width, slab.dtype)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    jax.eval_shape(
        lambda g, s, n: optimizer.update_values(g, g, s, n, counted), row, optimizer_slots, step
    )
    return means
