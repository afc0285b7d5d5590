"""The different rows of a fully sharded slab that one device's samples read.

A row has a *partner*, to whom `owner_exchange` sends a device's first question about it, and a
number there: shard m of the device's own group knows the rows of all owners that are shard m of
theirs. Without groups of several shards, partners are the owners. The functions are local to a
device.

Shapes: n partners; K ids of a device's samples in a slab.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlrm_jax.embedding import row_split
from dlrm_jax.embedding.bag_cotangents import BlockCotangents, one_by_one
from dlrm_jax.embedding.layout import Block
from dlrm_jax.embedding.row_sums import RowSums, sum_all
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import RowRequests
from dlrm_jax.native import ops


def request(
    slab: Slab, partners: int, blocks: Sequence[Block], ids: Int[Array, "b C2"], native: bool
) -> tuple[RowRequests, list[Int[Array, "b _ _"]]]:
    """The different rows that the bags of a slab's blocks read.

    Args:
        slab: fully sharded slab.
        partners: number n of partners; it divides the number of devices.
        blocks: blocks that read the slab.
        ids: ids of this device's samples, after `exchange.map_ids`.
        native: whether native kernels may be used.

    Returns:
        The rows by partner; and, for each bag position of each block, the place in the request of
        the row that it reads, [b, T, L], K for "no row".
    """
    found, numbers, shapes = [], [], []
    for block in blocks:
        row = ids[:, block.column[0]]  # [b, T, L]
        limit, modulus, residue, offset = (
            x[0][:, None] for x in (block.limit, block.modulus, block.residue, block.offset)
        )
        owner, local = row_split.place(row, modulus, offset, residue)
        number = local * (slab.shards // partners) + owner // partners
        partner = jnp.where((row >= 0) & (row < limit), owner % partners, partners)
        found.append(partner.reshape(-1).astype(jnp.int32))
        numbers.append(number.reshape(-1).astype(jnp.int32))
        shapes.append(row.shape)
    none = slab.rows * (slab.shards // partners)
    partner, number = jnp.concatenate(found), jnp.concatenate(numbers)
    requests, places = unique(partners, none, partner, number, native)
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = zip(jnp.split(places, ends), shapes, strict=True)
    return requests, [part.reshape(shape) for part, shape in parts]


def unique(
    partners: int, none: int, partner: Int[Array, " K"], number: Int[Array, " K"], native: bool
) -> tuple[RowRequests, Int[Array, " K"]]:
    """The different rows among K, by partner.

    The native kernel gives the same. On CPUs XLA sorts slowly: of 26,624 ids by Zipf's law, it
    found the rows in 6.4 ms, the kernel in 0.3.

    Args:
        partners: number n of partners.
        none: number for "no row".
        partner: partner of each row; n for "no row".
        number: number of each row at its partner.
        native: whether native kernels may be used.

    Returns:
        The request; and the place in it of each of the K, K for "no row".
    """
    if native:
        rows, starts, places = ops.unique_rows(partners, none, partner, number)
        return RowRequests(rows, starts), places  # kernels need no order
    count, index = partner.size, jnp.arange(partner.size, dtype=jnp.int32)
    if (partners + 1) * (none + 1) < 2**31:  # one key, and so a radix sort on GPUs
        key = partner * (none + 1) + number
        key = jnp.where(partner < partners, key, partners * (none + 1))
        key, order = jax.lax.sort((key, index), num_keys=1, is_stable=True)
        partner, number = key // (none + 1), key % (none + 1)
    else:
        partner, number, order = jax.lax.sort((partner, number, index), num_keys=2)
    is_first = jnp.ones(count, bool)
    is_first = is_first.at[1:].set((partner[1:] != partner[:-1]) | (number[1:] != number[:-1]))
    is_first &= partner < partners
    place = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    kept = jnp.where(is_first, place, count + index)
    rows = jnp.full(count, none, jnp.int32)
    rows = rows.at[kept].set(number, mode="drop", unique_indices=True)
    before = partner < jnp.arange(partners + 1, dtype=jnp.int32)[:, None]
    starts = jnp.sum(is_first & before, axis=1, dtype=jnp.int32)
    places = jnp.full(count, count, jnp.int32)
    places = places.at[order].set(jnp.where(partner < partners, place, count), unique_indices=True)
    return RowRequests(rows, starts, order), places


def merge(
    slab: Slab,
    requests: RowRequests,
    sums: Float[Array, "A K d"],
    native: bool,
    row_sums: RowSums,
) -> tuple[RowRequests, Float[Array, "_ d"]]:
    """Makes one request of those of A micro-batches, and sums the gradients of equal rows.

    Args:
        slab: fully sharded slab.
        requests: requests, with a first axis A.
        sums: gradients of the rows of each.
        native: whether native kernels may be used.
        row_sums: way to sum, see `backend.Backend`.
    """
    partners = requests.starts.shape[1] - 1
    place = jnp.arange(requests.rows.shape[1], dtype=jnp.int32)
    partner = jax.vmap(lambda starts: jnp.searchsorted(starts[1:], place, side="right"))(
        requests.starts
    )
    partner = partner.reshape(-1).astype(jnp.int32)
    none = slab.rows * (slab.shards // partners)
    merged, places = unique(partners, none, partner, requests.rows.reshape(-1), native)
    flat = sums.reshape(-1, sums.shape[-1])
    return merged, sum_by_row(len(flat), one_by_one((places, flat)), row_sums, merged.order)


def message(
    requests: RowRequests, at: Int[Array, " n"], size: int, none: int
) -> tuple[Int[Array, "n C"], Int[Array, " n"]]:
    """The next C rows for each partner.

    Args:
        requests: rows by partner.
        at: place of the first of these rows for each.
        size: number C.
        none: number for "no row".

    Returns:
        The numbers of the rows, ascending; and that of the first row for each partner that comes
        after them.
    """
    ends = requests.starts[1:]
    places = at[:, None] + jnp.arange(size, dtype=jnp.int32)
    numbers = requests.rows.at[places].get(mode="fill", fill_value=none)
    left = requests.rows.at[at + size].get(mode="fill", fill_value=none)
    numbers = jnp.where(places < ends[:, None], numbers, none)
    return numbers, jnp.where(at + size < ends, left, none)


def sum_by_row(
    count: int,
    blocks: Sequence[BlockCotangents],
    row_sums: RowSums,
    order: Int[Array, " N"] | None,
) -> Float[Array, "_ d"]:
    """The gradient of each row of a request, summed over this device's samples.

    Args:
        count: number K of places in the request.
        blocks: places, id weights and cotangents of each block.
        row_sums: way to sum, see `backend.Backend`.
        order: order of all N places in which equal ones lie side by side; None if it isn't known.
    """
    return sum_all(count, blocks, row_sums, order)[0]
