"""The blocks of a plan: the bag positions that read each slab.

A *bag position* is one bag that a shard pools for every sample. A *block* is the bag positions of
one bag length in one slab, equally many on every shard, so that one static exchange serves all of
them. A sequence of L ids is L bags of one id.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from dlrm_jax.embedding.plan import Piece, Plan
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.slab import Slab, make_slabs
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Block:
    """The bag positions of one slab with bags of L ids, T for each of M shards.

    M is 1 if the slab is replicated or fully sharded: each device then pools its own samples.

    A bag position reads an id iff it is below ``limit`` and its row is stored here, see
    `row_split`; it reads the slab's row ``offset`` + local row. Padding has limit 0. For a fully
    sharded slab, modulus, offset and residue are those of `row_split.place`.
    """

    slab: Slab
    length: int
    bag: Int32[np.ndarray, "M T"]  # index of the bag; -1 in padding
    column: Int32[np.ndarray, "M T L"]  # columns of its ids in the id array
    limit: Int32[np.ndarray, "M T"]
    modulus: Int32[np.ndarray, "M T"]
    residue: Int32[np.ndarray, "M T"]
    offset: Int32[np.ndarray, "M T"]
    # Expected share of different rows among the ids of a device, and among those of its group.
    distinct: tuple[float, float] = (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All slabs and blocks, and the bag positions of each bag.

    Attributes:
        slabs: all slabs; every table lies in exactly one.
        blocks: all blocks, the units of the exchange.
        columns: columns of each lookup in the id array after the mapped ids are appended.
        mapped: columns that each id map reads, in the order in which they are appended.
        bags: indices of the bags of each lookup: one, or one per id of a sequence.
        positions: all bag positions of each bag, as (block, shard, number). The pooled vector is
            the sum of theirs or, in a slab split by columns, their concatenation.
    """

    slabs: tuple[Slab, ...]
    blocks: tuple[Block, ...]
    columns: tuple[slice, ...]
    mapped: tuple[tuple[slice, Callable], ...]
    bags: tuple[range, ...]
    positions: tuple[tuple[tuple[int, int, int], ...], ...]

    @functools.cached_property
    def key(self) -> str:
        """The same for layouts in which each row of each table has the same place.

        Arrays of equal shapes don't tell one placement from another.
        """
        slabs = [
            (x.name, x.split, x.shards, x.rows, x.dim, str(x.dtype), x.pieces, x.packed)
            for x in self.slabs
        ]
        rows = [[(name, table.rows) for name, table in x.tables.items()] for x in self.slabs]
        return hashlib.blake2b(repr((slabs, rows)).encode(), digest_size=8).hexdigest()

    def check(self, state: EmbeddingState) -> None:
        """Checks that the rows of a state are where this layout has them.

        Raises:
            UserError: the state is of other tables or another placement.
        """
        if state.layout and state.layout != self.key:
            raise UserError(
                "state: expected one of this collection's tables and plan, got one of other tables "
                "or another plan. Make it with init or from_arrays of this collection; "
                "to_arrays of the other one gives whole tables for that"
            )

    def slab_of(self, table: str) -> Slab:
        """The slab that a table lies in."""
        for slab in self.slabs:
            if table in slab.tables:
                return slab
        names = ", ".join(name for slab in self.slabs for name in slab.tables)
        raise UserError(f"table: expected one of {names}, got {table!r}")

    def distinct(self, slab: Slab) -> tuple[float, float]:
        """The expected shares of ids that name different rows of a slab.

        The plan says so for each table, see `plan.Piece`.

        Returns:
            The share of the ids of a device's samples, and of those of a data-parallel group's.
        """
        blocks = [block for block in self.blocks if block.slab is slab]
        sizes = [block.column.size for block in blocks]
        device, group = np.average([b.distinct for b in blocks], axis=0, weights=sizes).tolist()
        return device, group

    @functools.cached_property
    def askers(self) -> dict[str, str]:
        """The first slab of which every batch asks for the same rows, by fully sharded slab.

        Such are two tables of a feature that differ in their width alone.
        """
        first: dict[Hashable, str] = {}
        return {
            slab.name: first.setdefault(self._asked_rows(slab), slab.name)
            for slab in self.slabs
            if slab.fully_sharded
        }

    def _asked_rows(self, slab: Slab) -> Hashable:
        blocks = [block for block in self.blocks if block.slab is slab]
        arrays = [(b.column, b.limit, b.modulus, b.residue, b.offset) for b in blocks]
        places = tuple(tuple((x.shape, x.tobytes()) for x in own) for own in arrays)
        return slab.rows, self.distinct(slab), places

    def table(self, name: str) -> Table:
        """The table of this name."""
        return self.slab_of(name).tables[name]


def make_layout(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    plan: Plan,
    optimizer: RowOptimizer | None,
    groups: int = 1,
    packed_from: int | None = None,
) -> Layout:
    """Lays out checked descriptions and a checked plan.

    Args:
        tables: all tables.
        features: features in the order of their columns in the id array.
        lookups: lookups in the order of the results.
        plan: placement of these tables.
        optimizer: default optimizer.
        groups: number of data-parallel groups, each with the plan's shards.
        packed_from: least width of rows that are packed, see `backend.Backend`.
    """
    slabs = make_slabs(tables, plan, optimizer, groups, packed_from)
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
        each = numbers[:, None] if lookup.pooling == "none" else numbers[None]
        bags_by_lookup.append(range(len(bags), len(bags) + len(each)))
        bags += [_Bag(lookup.table, columns_of_bag) for columns_of_bag in each]

    blocks: list[Block] = []
    positions: list[list[tuple[int, int, int]]] = [[] for _ in bags]
    for slab in slabs:
        here = [i for i, bag in enumerate(bags) if bag.table in slab.tables]
        for length in sorted({len(bags[i].columns) for i in here}):
            same = {i: bags[i] for i in here if len(bags[i].columns) == length}
            block = _block(slab, length, same)
            for m, t in zip(*np.nonzero(block.bag >= 0), strict=True):
                positions[block.bag[m, t]].append((len(blocks), int(m), int(t)))
            blocks.append(block)
    return Layout(
        slabs=slabs,
        blocks=tuple(blocks),
        columns=tuple(columns),
        mapped=tuple(mapped),
        bags=tuple(bags_by_lookup),
        positions=tuple(map(tuple, positions)),
    )


class _Bag(NamedTuple):
    """A bag: the table and the columns of its ids."""

    table: str
    columns: np.ndarray  # in the id array


def _block(slab: Slab, length: int, bags: Mapping[int, _Bag]) -> Block:
    positions: list[list[tuple[int, Piece, int]]] = [
        [] for _ in range(slab.shards if slab.sharded else 1)
    ]
    for i, bag in bags.items():
        for piece, offset in slab.pieces_of[bag.table]:
            positions[piece.shard or 0].append((i, piece, offset))

    shape = (len(positions), max(len(shard) for shard in positions))
    pieces = [piece for _, piece, _ in positions[0]] if slab.fully_sharded else [Piece("", None)]
    block = Block(
        slab=slab,
        length=length,
        bag=np.full(shape, -1, np.int32),
        column=np.zeros((*shape, length), np.int32),
        limit=np.zeros(shape, np.int32),
        modulus=np.ones(shape, np.int32),
        residue=np.zeros(shape, np.int32),
        offset=np.zeros(shape, np.int32),
        distinct=(
            float(np.mean([piece.distinct for piece in pieces])),
            float(np.mean([piece.group_distinct for piece in pieces])),
        ),
    )
    for m, shard in enumerate(positions):
        for t, (i, piece, offset) in enumerate(shard):
            block.bag[m, t] = i
            block.column[m, t] = bags[i].columns
            block.limit[m, t] = slab.tables[piece.table].rows
            place = piece.modulus, piece.residue, offset
            if slab.fully_sharded:
                quotient, remainder = slab.place(piece.table)
                place = slab.shards, remainder, quotient
            block.modulus[m, t], block.residue[m, t], block.offset[m, t] = place
    return block
