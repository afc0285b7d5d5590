"""The exchange of the rows of fully sharded slabs with their owners, on one device.

These functions run inside `jax.shard_map`; `PerDevice` calls them. A device asks each owner for the
different rows that its samples read, once each, gets them into a *buffer*, and pools its bags from
there. The way back is the same: it sums the gradients of each row, and sends one sum to the owner.
The bytes of a device don't depend on the number of devices, nor on repeated ids.

A collective has a fixed size, and no size holds all skews: an exchange takes as many *rounds* as
the fullest pair of devices needs, nearly always one. All contributions to a row are in one round,
so that the owner can sum and update it there.

Shapes: S devices; K ids of a device's samples in a slab; C rows that a pair exchanges in a round;
R rows of the slab on a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding import comm_dtype, row_split
from dlrm_jax.embedding.layout import Block
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.row_gradients import BlockCotangents, expand
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import RowRequests

LATER_ROUNDS = "later_rounds"
"""Name of the scope of all rounds after the first, which seldom run."""


def capacity(ids: int, shards: int, distinct: float = 1.0) -> int:
    """The number C of rows that a pair of devices exchanges in a round.

    If owners are drawn at random, the fullest of a million pairs has seldom more than the mean and
    five standard deviations.

    Args:
        ids: number K of ids of a device's samples.
        shards: number S of devices.
        distinct: expected share of them that name different rows.
    """
    mean = distinct * ids / shards
    return min(ids, math.ceil(mean + 5 * math.sqrt(mean)) + 4)


def request(
    slab: Slab, blocks: Sequence[Block], ids: Int[Array, "b C2"]
) -> tuple[RowRequests, list[Int[Array, "b _ _"]]]:
    """The different rows that the bags of a slab's blocks read.

    Args:
        slab: fully sharded slab.
        blocks: blocks that read it.
        ids: ids of this device's samples, after `exchange.map_ids`.

    Returns:
        The rows by owner; and, for each bag position of each block, the place in the buffer of
        the row that it reads, [b, T, L], K for "no row".
    """
    owners, rows, shapes = [], [], []
    for block in blocks:
        row = ids[:, block.column[0]]  # [b, T, L]
        limit, modulus, residue, offset = (
            x[0][:, None] for x in (block.limit, block.modulus, block.residue, block.offset)
        )
        owner, local = row_split.place(row, modulus, offset, residue)
        owners.append(jnp.where((row >= 0) & (row < limit), owner, slab.shards).reshape(-1))
        rows.append(local.reshape(-1).astype(jnp.int32))
        shapes.append(row.shape)
    found, places = _unique(slab, jnp.concatenate(owners).astype(jnp.int32), jnp.concatenate(rows))
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = zip(jnp.split(places, ends), shapes, strict=True)
    return found, [part.reshape(shape) for part, shape in parts]


def _unique(
    slab: Slab, owner: Int[Array, " K"], row: Int[Array, " K"]
) -> tuple[RowRequests, Int[Array, " K"]]:
    """Sorts occurrences by owner and row; an owner of S means "no row"."""
    count, shards = owner.size, slab.shards
    owner, row, order = jax.lax.sort((owner, row, jnp.arange(count, dtype=jnp.int32)), num_keys=2)
    is_first = jnp.ones(count, bool)
    is_first = is_first.at[1:].set((owner[1:] != owner[:-1]) | (row[1:] != row[:-1]))
    is_first &= owner < shards
    place = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    kept = jnp.where(is_first, place, count)
    rows = jnp.full(count, slab.rows, jnp.int32).at[kept].set(row, mode="drop")
    counts = jnp.zeros(shards, jnp.int32).at[owner].add(is_first.astype(jnp.int32), mode="drop")
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    places = jnp.full(count, count, jnp.int32)
    places = places.at[order].set(jnp.where(owner < shards, place, count))
    return RowRequests(rows, starts), places


def merge(
    slab: Slab, requests: RowRequests, sums: Float[Array, "A K d"]
) -> tuple[RowRequests, Float[Array, "_ d"]]:
    """Makes one request of those of A micro-batches, and sums the gradients of equal rows.

    Args:
        slab: fully sharded slab.
        requests: requests, with a first axis A.
        sums: gradients of the rows of each.
    """
    place = jnp.arange(requests.rows.shape[1], dtype=jnp.int32)
    owner = jax.vmap(lambda starts: jnp.searchsorted(starts[1:], place, side="right"))(
        requests.starts
    )
    owner = owner.reshape(-1).astype(jnp.int32)
    merged, places = _unique(slab, owner, requests.rows.reshape(-1))
    flat = sums.reshape(-1, sums.shape[-1])
    return merged, jnp.zeros_like(flat).at[places].add(flat, mode="drop")


def fetch(
    slab: Slab,
    table: Shaped[Array, "R d"],
    requests: RowRequests,
    axes: MeshAxes,
    dtype: str | None,
    distinct: float,
) -> Shaped[Array, "K d"]:
    """The buffer of the rows that this device asks for, in their storage dtype.

    Args:
        slab: fully sharded slab.
        table: rows of this device.
        requests: rows that its samples read.
        axes: axes of the mesh.
        dtype: dtype between devices; None keeps that of the table. Tables of 16 bits keep theirs.
        distinct: expected share of the ids that name different rows, see `capacity`.
    """
    wire = dtype if table.dtype == slab.vector_dtype else None

    def answer(
        places: Int[Array, "S C"], rows: Int[Array, "S C"], buffer: Shaped[Array, "K d"]
    ) -> Shaped[Array, "K d"]:
        asked = _to_each(axes, rows)
        vectors = table.at[asked].get(mode="fill", fill_value=0)
        received = comm_dtype.unpack(
            _to_each(axes, comm_dtype.pack(vectors, wire)), wire, table.dtype
        )
        return buffer.at[places].set(received, mode="drop")

    buffer = jnp.zeros((requests.rows.size, table.shape[1]), table.dtype)
    return _rounds(slab, requests, axes, distinct, answer, buffer)


def sum_by_row(count: int, blocks: Sequence[BlockCotangents]) -> Float[Array, "K d"]:
    """The gradient of each row in the buffer, summed over this device's samples.

    Args:
        count: number K of places in the buffer.
        blocks: places, id weights and cotangents of each block.
    """
    places, gradients = expand(blocks)
    totals = jnp.zeros((count, gradients.shape[1]), gradients.dtype)
    return totals.at[places].add(gradients, mode="drop")


def send_sums(
    slab: Slab,
    requests: RowRequests,
    sums: Float[Array, "K d"],
    axes: MeshAxes,
    dtype: str | None,
    distinct: float,
    receive: Callable[[Int[Array, " N"], Float[Array, "N d"], Any], Any],
    carry: Any,
) -> Any:
    """Sends the gradients of rows to their owners, and calls ``receive`` there for each round.

    Args:
        slab: fully sharded slab.
        requests: rows of this device's samples.
        sums: gradient of each, of these samples.
        axes: axes of the mesh.
        dtype: dtype between devices; None keeps theirs.
        distinct: expected share of the ids that name different rows, see `capacity`.
        receive: function of the rows and gradients that came from all devices, N = S · C, and of
            the carry; it returns the next carry. Each row of the slab comes in one round alone, up
            to S times; numbers from R on mean "no row".
        carry: arrays that differ by device.
    """

    def deliver(places: Int[Array, "S C"], rows: Int[Array, "S C"], carry: Any) -> Any:
        gradients = sums.at[places].get(mode="fill", fill_value=0)
        received = _to_each(axes, comm_dtype.pack(gradients, dtype))
        received = comm_dtype.unpack(received, dtype, sums.dtype)
        return receive(_to_each(axes, rows).reshape(-1), received.reshape(-1, sums.shape[1]), carry)

    return _rounds(slab, requests, axes, distinct, deliver, carry)


def _to_each(axes: MeshAxes, x: Shaped[Array, "S *c"]) -> Shaped[Array, "S *c"]:
    """Sends item k to device k; the result has what each sent here.

    It goes to the right shard of the sender's own group first, then between groups: in 16x8, each
    device has 7 + 15 partners instead of 127, the 7 in its own host. XLA also compiles an
    all-to-all in a time that grows with the partners.
    """
    by_group = x.reshape(axes.groups, axes.shards, *x.shape[1:])
    for over, axis, parts in ((axes.model, 1, axes.shards), (axes.data, 0, axes.groups)):
        if parts > 1:
            by_group = jax.lax.all_to_all(by_group, over, axis, axis, tiled=True)
    return by_group.reshape(x.shape)


def _rounds(
    slab: Slab,
    requests: RowRequests,
    axes: MeshAxes,
    distinct: float,
    body: Callable[[Int[Array, "S C"], Int[Array, "S C"], Any], Any],
    carry: Any,
) -> Any:
    """Calls ``body(places, rows, carry)`` with C rows of each owner at most until all have come.

    A round has the rows below a limit that all devices agree on: the least of their rows number C,
    counted from those that have come. It is another one for each owner.
    """
    rows, starts = requests.rows, requests.starts
    count, none = rows.size, slab.rows
    size = capacity(count, slab.shards, distinct)

    def one(at: Int[Array, " S"], carry: Any) -> tuple[Array, Array, Any]:
        places = at[:, None] + jnp.arange(size, dtype=jnp.int32)
        asked = rows.at[places].get(mode="fill", fill_value=none)
        asked = jnp.where(places < starts[1:, None], asked, none)
        later = rows.at[at + size].get(mode="fill", fill_value=none)
        limit = jax.lax.pmin(jnp.where(at + size < starts[1:], later, none), axes.split)
        is_now = asked < limit[:, None]
        carry = body(jnp.where(is_now, places, count), jnp.where(is_now, asked, none), carry)
        return at + is_now.sum(axis=1, dtype=jnp.int32), jnp.any(limit < none), carry

    if size == count:  # every pair has room for all rows
        places = starts[:-1, None] + jnp.arange(size, dtype=jnp.int32)
        is_own = places < starts[1:, None]
        asked = rows.at[places].get(mode="fill", fill_value=none)
        return body(jnp.where(is_own, places, count), jnp.where(is_own, asked, none), carry)
    # The first round is outside of the loop, where XLA can move other work beside it.
    state = one(starts[:-1], carry)

    def later(state: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        with jax.named_scope(LATER_ROUNDS):
            return one(state[0], state[2])

    return jax.lax.while_loop(lambda state: state[1], later, state)[2]
