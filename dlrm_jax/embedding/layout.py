"""The arrays of a plan: slabs of its pieces, and blocks of bag positions that read them.

A *slab* is one array of the pieces of tables with equal properties, one after the other. A *bag
position* is one bag that a shard pools for every sample. A *block* is the bag positions of one bag
length in one slab, equally many on every shard, so that one static exchange serves all of them. A
sequence of L ids is L bags of one id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.plan import Piece, Plan
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Feature, Lookup, Table

_Split = Literal["rows", "columns"] | None

# A table of at least as many rows has a slab of its own: on one shard it is then saved and restored
# without a copy, and on CPU scatters into separate arrays run on all cores.
OWN_SLAB_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Slab:
    """One array: [shards · rows, dim] split by rows over the model axis, or [rows, dim].

    Attributes:
        name: key of its arrays in the state.
        split: axis that is split over the model axis; None if every device has all of it.
        rows: number of rows on one device; shards with fewer are padded.
        dim: width of its tables.
        width: width of a vector on one shard, less than ``dim`` if columns are split.
        dtype: dtype of its tables.
        pieces: pieces of tables, each with its first row in the slab.
        tables: tables that the pieces belong to, by name.
        optimizer: optimizer of all its rows; None if they are frozen.
        rounds_randomly: whether new values are rounded at random, see `rounding`.
    """

    name: str
    split: _Split
    rows: int
    dim: int
    width: int
    dtype: np.dtype
    pieces: tuple[tuple[Piece, int], ...]
    tables: Mapping[str, Table]
    optimizer: RowOptimizer | None
    rounds_randomly: bool

    @property
    def sharded(self) -> bool:
        """Whether shards have different parts."""
        return self.split is not None

    @property
    def vector_dtype(self) -> np.dtype:
        """The dtype of pooled vectors and gradients: at least float32."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def needs_sums(self, always: bool) -> bool:
        """Whether the gradients of equal rows must be summed before the update."""
        return always or needs_sums(self.optimizer, self.dtype)


def needs_sums(optimizer: RowOptimizer | None, dtype: np.dtype) -> bool:
    """Whether an update needs the summed gradient of each row, not each gradient by itself."""
    # Numbers of 16 bits are rounded once per update, not once per gradient.
    return optimizer is not None and not (optimizer.linear and jnp.dtype(dtype).itemsize > 2)


@dataclasses.dataclass(frozen=True)
class SlabKey:
    """The properties that the tables of one slab share. Tables with equal keys share a slab.

    Attributes:
        split: axis of the tables that is split over the model axis; None for copies.
        optimizer_key: key of the optimizer, see `by_value`.
        dim: width of the tables.
        dtype: dtype of the tables.
        rounds_randomly: whether new values are rounded at random.
        alone: name of the table if it has a slab of its own; else None.
        optimizer: optimizer of all rows; None if they are frozen.
    """

    split: _Split
    optimizer_key: Hashable
    dim: int
    dtype: str
    rounds_randomly: bool
    alone: str | None
    optimizer: RowOptimizer | None = dataclasses.field(compare=False)


def slab_key(
    table: Table, pieces: Sequence[Piece], shards: int, optimizer: RowOptimizer | None
) -> SlabKey:
    """The key of the slab that a table lies in.

    Args:
        table: table to place.
        pieces: all pieces of the table.
        shards: number of shards of the plan.
        optimizer: default optimizer.
    """
    split: _Split = "columns" if pieces[0].splits > 1 else "rows"
    if pieces[0].shard is None:
        split = None
    # A slab of a table on some shards only would need padding on the others.
    spread = split is None or len(pieces) == shards
    own = table.row_optimizer(optimizer)
    return SlabKey(
        split,
        optimizer_key(own),
        table.dim,
        table.dtype,
        table.rounds_randomly,
        table.name if table.rows >= OWN_SLAB_ROWS and spread else None,
        own,
    )


@dataclasses.dataclass(frozen=True)
class Block:
    """The bag positions of one slab with bags of L ids, T for each of M shards (1 if replicated).

    A bag position reads an id x iff x < limit and x ≡ residue (mod modulus), from the slab's row
    x // modulus + offset. Padding positions have limit 0.
    """

    slab: Slab
    length: int
    bag: Int32[np.ndarray, "M T"]  # index of the bag; -1 in padding
    column: Int32[np.ndarray, "M T L"]  # columns of its ids in the id array
    limit: Int32[np.ndarray, "M T"]
    modulus: Int32[np.ndarray, "M T"]
    residue: Int32[np.ndarray, "M T"]
    offset: Int32[np.ndarray, "M T"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """All slabs and blocks, and the places of the parts of each bag.

    Attributes:
        slabs: all slabs; every table lies in exactly one.
        blocks: all blocks, the units of the exchange.
        columns: columns of each lookup in the id array after the mapped ids are appended.
        mapped: columns that each id map reads, in the order in which they are appended.
        bags: indices of the bags of each lookup: one, or one per id of a sequence.
        parts: (block, shard, bag position) of each part of each bag. Its vector is their sum or, in
            a slab split by columns, their concatenation.
    """

    slabs: tuple[Slab, ...]
    blocks: tuple[Block, ...]
    columns: tuple[slice, ...]
    mapped: tuple[tuple[slice, Callable], ...]
    bags: tuple[range, ...]
    parts: tuple[tuple[tuple[int, int, int], ...], ...]

    def slab_of(self, table: str) -> Slab:
        """The slab that a table lies in."""
        return next(slab for slab in self.slabs if table in slab.tables)

    def table(self, name: str) -> Table:
        """The table of this name."""
        return self.slab_of(name).tables[name]


def make_layout(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    plan: Plan,
    optimizer: RowOptimizer | None,
) -> Layout:
    """Lays out checked descriptions and a checked plan.

    Args:
        tables: all tables.
        features: features in the order of their columns in the id array.
        lookups: lookups in the order of the results.
        plan: placement of these tables.
        optimizer: default optimizer.
    """
    slabs = _slabs(tables, plan, optimizer)
    starts = np.cumsum([0, *(feature.max_ids for feature in features)]).tolist()
    span = {f.name: slice(starts[i], starts[i + 1]) for i, f in enumerate(features)}
    end = starts[-1]
    columns: list[slice] = []
    mapped: list[tuple[slice, Callable]] = []
    for lookup in lookups:
        source = span[lookup.feature]
        if lookup.id_map is None:
            columns.append(source)
            continue
        mapped.append((source, lookup.id_map))
        columns.append(slice(end, end + source.stop - source.start))
        end = columns[-1].stop

    bags: list[_Bag] = []
    bags_by_lookup = []
    for lookup, own in zip(lookups, columns, strict=True):
        numbers = np.arange(own.start, own.stop)
        groups = numbers[:, None] if lookup.pooling == "none" else numbers[None]
        bags_by_lookup.append(range(len(bags), len(bags) + len(groups)))
        bags += [_Bag(lookup.table, group) for group in groups]

    blocks: list[Block] = []
    parts: list[list[tuple[int, int, int]]] = [[] for _ in bags]
    for slab in slabs:
        here = [i for i, bag in enumerate(bags) if bag.table in slab.tables]
        for length in sorted({len(bags[i].columns) for i in here}):
            same = {i: bags[i] for i in here if len(bags[i].columns) == length}
            block = _block(slab, length, same, plan.shards)
            for m, t in zip(*np.nonzero(block.bag >= 0), strict=True):
                parts[block.bag[m, t]].append((len(blocks), int(m), int(t)))
            blocks.append(block)
    return Layout(
        slabs=slabs,
        blocks=tuple(blocks),
        columns=tuple(columns),
        mapped=tuple(mapped),
        bags=tuple(bags_by_lookup),
        parts=tuple(map(tuple, parts)),
    )


def _slabs(tables: Sequence[Table], plan: Plan, optimizer: RowOptimizer | None) -> tuple[Slab, ...]:
    groups: dict[SlabKey, list[Table]] = {}
    for table in tables:
        key = slab_key(table, plan.of(table.name), plan.shards, optimizer)
        groups.setdefault(key, []).append(table)

    slabs = []
    for key, members in groups.items():
        used = dict.fromkeys([None, *range(plan.shards)], 0)  # rows so far, by shard
        pieces = []
        for table in members:
            for piece in plan.of(table.name):
                pieces.append((piece, used[piece.shard]))
                used[piece.shard] += piece.rows(table.rows)
        more = f"+{len(members) - 1}" if len(members) > 1 else ""
        slabs.append(
            Slab(
                name=members[0].name + more,
                split=key.split,
                rows=max(used.values()),
                dim=key.dim,
                width=key.dim // plan.shards if key.split == "columns" else key.dim,
                dtype=np.dtype(key.dtype),
                pieces=tuple(pieces),
                tables={table.name: table for table in members},
                optimizer=key.optimizer,
                rounds_randomly=key.rounds_randomly,
            )
        )
    return tuple(slabs)


class _Bag(NamedTuple):
    """A bag: the table and the columns of its ids."""

    table: str
    columns: np.ndarray  # in the id array


def _block(slab: Slab, length: int, bags: Mapping[int, _Bag], shards: int) -> Block:
    positions: list[list[tuple[int, Piece, int]]] = [
        [] for _ in range(shards if slab.sharded else 1)
    ]
    for i, bag in bags.items():
        for piece, offset in slab.pieces:
            if piece.table == bag.table:
                positions[piece.shard or 0].append((i, piece, offset))

    shape = (len(positions), max(len(shard) for shard in positions))
    block = Block(
        slab=slab,
        length=length,
        bag=np.full(shape, -1, np.int32),
        column=np.zeros((*shape, length), np.int32),
        limit=np.zeros(shape, np.int32),
        modulus=np.ones(shape, np.int32),
        residue=np.zeros(shape, np.int32),
        offset=np.zeros(shape, np.int32),
    )
    for m, shard in enumerate(positions):
        for t, (i, piece, offset) in enumerate(shard):
            block.bag[m, t] = i
            block.column[m, t] = bags[i].columns
            block.limit[m, t] = slab.tables[piece.table].rows
            block.modulus[m, t] = piece.modulus
            block.residue[m, t] = piece.residue
            block.offset[m, t] = offset
    return block
