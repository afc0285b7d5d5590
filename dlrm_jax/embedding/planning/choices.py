"""The placements of one table that a planner considers, or that a user asks for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dlrm_jax.embedding.plan import (
    PLACEMENTS,
    Piece,
    Plan,
    column_wise,
    fully_sharded,
    replicated,
    row_wise,
    table_wise,
)
from dlrm_jax.embedding.slab import OWN_SLAB_ROWS
from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError


class Choice(NamedTuple):
    """One way to place a table.

    Attributes:
        placement: one of `PLACEMENTS`.
        shards: numbers of the shards that have the table or parts of it.
    """

    placement: str
    shards: Sequence[int]

    @classmethod
    def of(cls, plan: Plan, table: str) -> Choice:
        """The choice that a plan makes for a table."""
        placement, pieces = plan.placement(table), plan.of(table)
        if placement in ("replicated", "column_wise", "fully_sharded"):
            return cls(placement, range(plan.shards))
        ordered = sorted(pieces, key=lambda piece: piece.residue)
        return cls(placement, [piece.shard for piece in ordered if piece.shard is not None])

    def pieces(self, table: str) -> tuple[Piece, ...]:
        """The pieces of a table that is placed in this way."""
        if self.placement == "replicated":
            return replicated(table)
        if self.placement == "fully_sharded":
            return fully_sharded(table)
        if self.placement == "column_wise":
            return column_wise(table, len(self.shards))
        if self.placement == "row_wise":
            return row_wise(table, self.shards)
        return table_wise(table, self.shards[0])


def choices(
    tables: Sequence[Table],
    shards: int,
    placements: Mapping[str, str],
    over_all: bool = False,
) -> list[list[Choice]]:
    """The placements to choose from, for each table.

    Args:
        tables: all tables.
        shards: number of shards of the plan.
        placements: placements that a user asks for, by table name, see `automatic_plan`.
        over_all: whether tables that no placement is asked for may be fully sharded.

    Raises:
        UserError: an override names no table or isn't a placement.
    """
    unknown = placements.keys() - {table.name for table in tables}
    if unknown:
        raise UserError(
            f"placements: no table named {', '.join(sorted(unknown))}; "
            f"there are {', '.join(table.name for table in tables)}"
        )
    return [
        _asked_for(table.name, placements[table.name], shards)
        if table.name in placements
        else list(_all(table.rows >= OWN_SLAB_ROWS, table.dim % shards == 0, shards, over_all))
        for table in tables
    ]


@functools.lru_cache(maxsize=64)  # on a thousand shards each is thousands of choices
def _all(large: bool, divisible: bool, shards: int, over_all: bool) -> tuple[Choice, ...]:
    """All choices for a table; of equally good ones the planner takes the first.

    Large tables are on all shards. On some shards they would share a slab with others, and slabs,
    which are built, saved and restored in one piece, would be as large as all of them.

    Args:
        large: whether it may have a slab of its own.
        divisible: whether the shards divide its width.
        shards: number of shards of the plan.
        over_all: whether it may be fully sharded.
    """
    owned = [Choice("fully_sharded", range(shards))] if over_all else []
    if shards == 1:
        return *_whole(1), *owned
    found = [Choice("replicated", range(shards))]
    if not large:
        found += _whole(shards)
    for size in range(shards if large else 2, shards + 1):
        if shards % size == 0:
            groups = [range(start, start + size) for start in range(0, shards, size)]
            found += [Choice("row_wise", group) for group in groups]
    if divisible:
        found.append(Choice("column_wise", range(shards)))
    return *found, *owned


def _whole(shards: int) -> list[Choice]:
    return [Choice("table_wise", range(k, k + 1)) for k in range(shards)]


def _asked_for(table: str, text: str, shards: int) -> list[Choice]:
    placement, colon, where = text.partition(":")
    if placement not in PLACEMENTS or (colon and placement not in ("table_wise", "row_wise")):
        raise UserError(
            f"placements: table {table}: expected replicated, column_wise, fully_sharded, "
            f"row_wise, row_wise:FIRST-LAST, table_wise or table_wise:SHARD, got {text!r}"
        )
    if placement == "table_wise":
        if not colon:
            return _whole(shards)
        shard = _shard(table, where, shards)
        return [Choice(placement, range(shard, shard + 1))]
    return [Choice(placement, _run(table, where, shards) if colon else range(shards))]


def _run(table: str, text: str, shards: int) -> range:
    first, dash, last = text.partition("-")
    if not dash:
        raise UserError(f"placements: table {table}: expected shards FIRST-LAST, got {text!r}")
    found = range(_shard(table, first, shards), _shard(table, last, shards) + 1)
    if not found:
        raise UserError(f"placements: table {table}: expected shards FIRST-LAST, got {text!r}")
    return found


def _shard(table: str, text: str, shards: int) -> int:
    if not text.isdecimal() or int(text) >= shards:
        raise UserError(f"placements: table {table}: shard must be 0..{shards - 1}, got {text!r}")
    return int(text)
