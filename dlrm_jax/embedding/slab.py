"""The arrays that tables lie in.

A *slab* is one array of the pieces of tables with equal properties, one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.embedding.packed_rows import LANES, columns, fills_no_lines, per_line
from dlrm_jax.embedding.plan import Piece, Plan
from dlrm_jax.embedding.probe import check_rows_apart
from dlrm_jax.embedding.row_optax import RowOptax
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import MAX_ROWS, Table
from dlrm_jax.errors import UserError

_Split = Literal["rows", "columns", "devices"] | None

# A table of at least as many rows has a slab of its own: on one shard it is then saved and restored
# without a copy, and on CPU scatters into separate arrays run on all cores.
OWN_SLAB_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Slab:
    """One array: [shards · rows, dim] split by rows, or [rows, dim]; or packed.

    Attributes:
        name: key of its arrays in the state.
        split: axis that is split over the model axis, rows or columns; ``"devices"`` if rows are
            split over all devices; None if every device has a copy.
        shards: number of devices that it is split over; 1 if every device has a copy.
        rows: number of rows on one device; shards with fewer are padded.
        dim: width of its tables.
        width: width of a vector on one shard, less than ``dim`` if columns are split.
        dtype: dtype of its tables.
        pieces: pieces of tables, each with its first row in its shard's part of the slab, or in a
            fully sharded slab, see `row_split`.
        tables: tables that the pieces belong to, by name.
        optimizer: optimizer of all its rows; None if they are frozen.
        rounds_randomly: whether new values are rounded at random, see `rounding`.
        packed: whether rows lie side by side on each device, see `packed_rows`.
    """

    name: str
    split: _Split
    shards: int
    rows: int
    dim: int
    width: int
    dtype: np.dtype
    pieces: tuple[tuple[Piece, int], ...]
    tables: Mapping[str, Table]
    optimizer: RowOptimizer | None
    rounds_randomly: bool
    packed: bool = False

    @property
    def sharded(self) -> bool:
        """Whether it is split over the model axis, and copied over the data axes."""
        return self.split in ("rows", "columns")

    @property
    def fully_sharded(self) -> bool:
        """Whether its rows are split over all devices, without copies."""
        return self.split == "devices"

    @functools.cached_property
    def on_shards(self) -> tuple[tuple[Piece, int], ...]:
        """The pieces, with each device's share of a fully sharded table as a piece of its own."""
        if not self.fully_sharded:
            return self.pieces
        found = []
        for piece, first in self.pieces:
            for residue in range(self.shards):
                row, device = divmod(first + residue, self.shards)
                found.append((Piece(piece.table, device, self.shards, residue), row))
        return tuple(found)

    @functools.cached_property
    def pieces_of(self) -> dict[str, tuple[tuple[Piece, int], ...]]:
        """The pieces of each table, with their first rows, by its name."""
        found = {name: [] for name in self.tables}
        for piece, first in self.pieces:
            found[piece.table].append((piece, first))
        return {name: tuple(own) for name, own in found.items()}

    def place(self, table: str) -> tuple[int, int]:
        """Quotient and remainder of a table's first row in a fully sharded slab.

        `row_split.place` takes them.
        """
        ((_, first),) = self.pieces_of[table]
        return divmod(first, self.shards)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that an array of some of its rows is stored in.

        Args:
            shape: shape of the table or of a slot: [rows, columns], [rows] or [].
        """
        if not self.packed or len(shape) < 2:
            return shape
        return shape[0] // per_line(self.width), shape[1] // self.width * columns(self.width)

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
    """The properties that the tables of one slab share; the other attributes are those of `Slab`.

    Attributes:
        optimizer_key: key of the optimizer, see `by_value`.
        alone: name of the table if it has a slab of its own; else None.
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
        split = "devices" if pieces[0].fully_sharded else None
    # A slab of a table on some shards only would need padding on the others. Fully sharded tables
    # are exchanged together.
    on_all_shards = split is None or (split != "devices" and len(pieces) == shards)
    own = table.row_optimizer(optimizer)
    return SlabKey(
        split,
        optimizer_key(own),
        table.dim,
        table.dtype,
        table.rounds_randomly,
        table.name if table.rows >= OWN_SLAB_ROWS and on_all_shards else None,
        own,
    )


def make_slabs(
    tables: Sequence[Table],
    plan: Plan,
    optimizer: RowOptimizer | None,
    groups: int = 1,
    packed_from: int | None = None,
) -> tuple[Slab, ...]:
    """The slabs of a plan; every table lies in exactly one.

    Args:
        tables: all tables.
        plan: placement of these tables.
        optimizer: default optimizer.
        groups: number of data-parallel groups, each with the plan's shards.
        packed_from: least width of rows that are packed, see `backend.Backend`.

    Raises:
        UserError: the update of an optimizer failed or mixes rows; the message names a table.
    """
    by_key: dict[SlabKey, list[_Members]] = {}
    for table in tables:
        own = plan.of(table.name)
        key = slab_key(table, own, plan.shards, optimizer)
        alike = by_key.setdefault(key, [])
        shards = {"devices": groups * plan.shards, None: 1}.get(key.split, plan.shards)
        if not alike or not alike[-1].add(table, own):
            alike.append(_Members(key.split, shards, plan.shards))
            alike[-1].add(table, own)

    slabs = []
    # Alike for all slabs, so that two of one feature still have the same rows, see `Layout.askers`.
    # On a TPU, numbers of rows fill lines, too.
    whole_lines = LANES if packed_from else 1
    for key, alike in by_key.items():
        for members in alike:
            names = list(members.tables)
            more = f"+{len(names) - 1}" if len(names) > 1 else ""
            width = key.dim // plan.shards if key.split == "columns" else key.dim
            packed = fills_no_lines(width, packed_from)
            slabs.append(
                Slab(
                    name=names[0] + more,
                    split=key.split,
                    shards=members.shards,
                    rows=-(-members.most // whole_lines) * whole_lines,
                    dim=key.dim,
                    width=width,
                    dtype=np.dtype(key.dtype),
                    pieces=tuple(members.pieces),
                    tables=members.tables,
                    optimizer=key.optimizer,
                    rounds_randomly=key.rounds_randomly,
                    packed=packed,
                )
            )
    for slab in slabs:
        _check_optimizer(slab)
    return tuple(slabs)


def _check_optimizer(slab: Slab) -> None:
    """Checks the updates of an optimizer of a user, see `probe`; the others are checked already."""
    if slab.optimizer is None or type(slab.optimizer) in (RowOptax, *OPTIMIZERS.values()):
        return
    try:
        check_rows_apart(slab.optimizer, slab.dim, slab.width)
    except UserError as error:
        raise UserError(f"table {next(iter(slab.tables))}: {error}") from error


class _Members:
    """The tables of a slab, and the rows that it has so far by shard, or in all at None.

    A device numbers the rows of all owners that are the same shard of their groups, so a fully
    sharded slab has as many rows as one array can have for each of a group's shards.
    """

    def __init__(self, split: _Split, shards: int, group_shards: int):
        self.split = split
        self.shards = shards
        self.limit = MAX_ROWS * (group_shards if split == "devices" else 1)
        self.tables: dict[str, Table] = {}
        self.pieces: list[tuple[Piece, int]] = []
        self.rows: dict[int | None, int] = dict.fromkeys([None, *range(shards)], 0)

    def add(self, table: Table, pieces: Sequence[Piece]) -> bool:
        """Adds a table, if the rows of no shard become more than the limit."""
        ends = {x.shard: self.rows[x.shard] + x.rows(table.rows) for x in pieces}
        if max(ends.values()) > self.limit:
            return False
        self.pieces += [(piece, self.rows[piece.shard]) for piece in pieces]
        self.rows |= ends
        self.tables[table.name] = table
        return True

    @property
    def most(self) -> int:
        """The rows of the fullest shard."""
        most = max(self.rows.values())
        return -(-most // self.shards) if self.split == "devices" else most
