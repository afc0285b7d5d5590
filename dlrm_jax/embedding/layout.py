"""Where a plan's pieces lie: slabs that hold them, and blocks of bag positions that read them.

A *slab* is one array that holds the pieces of one kind side by side. A *bag position* is one
bag that a shard pools for every sample; a *block* is the bag positions of one bag length in one
slab, equally many on every shard, so that one static exchange serves them all. A sequence
is as many bags of one id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.optimizer import RowOptimizer
from dlrm_jax.embedding.plan import Piece, Plan
from dlrm_jax.embedding.table import Feature, Lookup, Table

_Split = Literal["rows", "columns"] | None

# A table this large has a slab of its own: on one shard it is then saved and restored
# without a copy, and on CPU scatters into separate arrays run on all cores.
OWN_SLAB_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Slab:
    """One array: [shards · rows, dim] split by rows over the model axis, or [rows, dim].

    Attributes:
        name: the key of its arrays in the state.
        split: what is split over the model axis; None if it is whole on every device.
        rows: on one device; shards with less are padded.
        dim: width of its tables.
        width: of a vector on one shard: less than ``dim`` where columns are split.
        pieces: each with its first row in the slab.
        tables: those that the pieces are of, by name.
        optimizer: of all its rows; None if they are frozen.
        rounds_randomly: new weights, see `rounding`.
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
        """Whether shards hold different parts."""
        return self.split is not None

    @property
    def vector_dtype(self) -> np.dtype:
        """Of pooled vectors and gradients: at least float32."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def needs_sums(self, always: bool) -> bool:
        """Whether the gradients of equal rows must be summed before the update."""
        return always or needs_sums(self.optimizer, self.dtype)


def needs_sums(optimizer: RowOptimizer | None, dtype: np.dtype) -> bool:
    """Whether an update needs the summed gradient of each row, not its occurrences one by one."""
    # Numbers of 16 bits are rounded once per update, not once per occurrence.
    return optimizer is not None and not (optimizer.linear and jnp.dtype(dtype).itemsize > 2)


@dataclasses.dataclass(frozen=True)
class SlabKey:
    """The properties that the tables of one slab share. Tables with equal keys share a slab.

    Attributes:
        split: axis of the tables that is split over the model axis; None for copies.
        optimizer_key: value of the optimizer, by which equal ones are found.
        dim: width of the tables.
        dtype: dtype of the tables.
        rounds_randomly: whether new values are rounded randomly.
        alone: name of a table that has a slab of its own; None for others.
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
        table: the table.
        pieces: all of its pieces.
        shards: number of shards of the plan.
        optimizer: optimizer of tables that have none of their own.
    """
    split: _Split = "columns" if pieces[0].splits > 1 else "rows"
    if pieces[0].shard is None:
        split = None
    # Alone, a table on some shards would be matched by padding on the others.
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
    """Bag positions [m, t] of one slab, for shard m, with L ids each (m is 0 alone if replicated).

    A column's id x is held by the bag position iff x < limit and x ≡ residue (mod modulus); it
    lies then in the slab's row x // modulus + offset. Padding positions have limit 0.
    """

    slab: Slab
    length: int
    bag: Int32[np.ndarray, "M T"]  # its index; -1 in padding
    column: Int32[np.ndarray, "M T L"]
    limit: Int32[np.ndarray, "M T"]
    modulus: Int32[np.ndarray, "M T"]
    residue: Int32[np.ndarray, "M T"]
    offset: Int32[np.ndarray, "M T"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """All slabs and blocks, and where each lookup finds the parts of its bags.

    Attributes:
        slabs: every table lies in exactly one.
        blocks: the units of the exchange.
        columns: by lookup, its columns in the id array after the mapped ids are appended.
        mapped: the columns that each id map reads, in the order in which they are appended.
        bags: by lookup, the indices of its bags: one, or one an id of a sequence.
        parts: by bag, the (block, shard, bag position) whose vectors make up its own: their sum or,
            of a slab split by columns, their concatenation.
    """

    slabs: tuple[Slab, ...]
    blocks: tuple[Block, ...]
    columns: tuple[slice, ...]
    mapped: tuple[tuple[slice, Callable], ...]
    bags: tuple[range, ...]
    parts: tuple[tuple[tuple[int, int, int], ...], ...]

    def slab_of(self, table: str) -> Slab:
        """The slab that holds a table."""
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
        features: in the order of their columns in the id array.
        lookups: in the order of the results.
        plan: of these tables.
        optimizer: for tables that have none of their own.
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
    of_lookup = []
    for lookup, own in zip(lookups, columns, strict=True):
        numbers = np.arange(own.start, own.stop)
        groups = numbers[:, None] if lookup.pooling == "none" else numbers[None]
        of_lookup.append(range(len(bags), len(bags) + len(groups)))
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
        bags=tuple(of_lookup),
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
    """The ids that one bag position pools for a sample."""

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
