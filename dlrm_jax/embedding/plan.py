"""A plan: the pieces of tables, and the shard of each piece."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence

from dlrm_jax.embedding import row_split
from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError
from dlrm_jax.json_objects import without_repeats
from dlrm_jax.text_table import text_table

PLACEMENTS = ("replicated", "table_wise", "row_wise", "column_wise", "fully_sharded")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a table, on one shard or, for None, on every shard.

    It has the rows r ≡ residue (mod modulus), see `row_split`, and of these all columns or, of
    ``splits`` equal runs of columns, the one with number ``split``. A piece that is
    ``fully_sharded`` is a whole table whose rows are dealt out over all devices of the mesh; of the
    ids of a device's samples, about the share ``distinct`` names different rows, and of the ids of
    a data-parallel group's, ``group_distinct``. They decide the size of messages alone: more rows
    are sent in several.
    """

    table: str
    shard: int | None
    modulus: int = 1
    residue: int = 0
    splits: int = 1
    split: int = 0
    fully_sharded: bool = False
    distinct: float = 1.0
    group_distinct: float = 1.0

    def rows(self, table_rows: int) -> int:
        """The number of the table's rows in the piece."""
        return row_split.count(table_rows, self.modulus, self.residue)


def replicated(table: str) -> tuple[Piece, ...]:
    """The pieces of a table that is whole on every shard."""
    return (Piece(table, None),)


def table_wise(table: str, shard: int) -> tuple[Piece, ...]:
    """The pieces of a table that is whole on one shard."""
    return (Piece(table, shard),)


def row_wise(table: str, shards: Sequence[int]) -> tuple[Piece, ...]:
    """The pieces of a table whose rows are dealt out over these shards, such as one host's."""
    return tuple(Piece(table, shard, len(shards), k) for k, shard in enumerate(shards))


def column_wise(table: str, shards: int) -> tuple[Piece, ...]:
    """The pieces of a table whose columns are split equally over all shards."""
    return tuple(Piece(table, k, splits=shards, split=k) for k in range(shards))


def fully_sharded(
    table: str, distinct: float = 1.0, group_distinct: float | None = None
) -> tuple[Piece, ...]:
    """The piece of a table whose rows are dealt out over all devices; no row has a copy.

    Args:
        table: name of the table.
        distinct: expected share of the ids of a device's samples that name different rows.
        group_distinct: share of those of a data-parallel group's samples; None for the same.
    """
    in_group = distinct if group_distinct is None else group_distinct
    return (Piece(table, None, fully_sharded=True, distinct=distinct, group_distinct=in_group),)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The pieces of all tables on ``shards`` shards, the size of the mesh's model axis."""

    shards: int
    pieces: tuple[Piece, ...]

    def of(self, table: str) -> tuple[Piece, ...]:
        """The pieces of one table."""
        return self._by_table.get(table, ())

    @functools.cached_property
    def _by_table(self) -> dict[str, tuple[Piece, ...]]:
        """The pieces of each table, by its name."""
        found: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            found.setdefault(piece.table, []).append(piece)
        return {name: tuple(pieces) for name, pieces in found.items()}

    def placement(self, table: str) -> str:
        """The placement of a table, one of `PLACEMENTS`.

        Raises:
            UserError: the plan doesn't have the table.
        """
        pieces = self.of(table)
        if not pieces:
            raise UserError(f"table {table}: the plan has no pieces of it; make one of this table")
        first = pieces[0]
        if first.shard is None:
            return "fully_sharded" if first.fully_sharded else "replicated"
        if first.splits > 1:
            return "column_wise"
        return "table_wise" if first.modulus == 1 else "row_wise"

    def check(self, tables: Sequence[Table]) -> None:
        """Checks that every element of every table lies in exactly one piece.

        Raises:
            UserError: an element lies in none or in several; the message names the table.
        """
        unknown = {piece.table for piece in self.pieces} - {table.name for table in tables}
        if unknown:
            raise UserError(f"the plan places unknown table(s) {', '.join(sorted(unknown))}")
        for table in tables:
            pieces = self.of(table.name)
            ordered = tuple(sorted(pieces, key=lambda piece: piece.residue))
            shards = [piece.shard for piece in ordered if piece.shard is not None]
            on_mesh = set(shards) <= set(range(self.shards)) and len(set(shards)) == len(shards)
            by_rows = shards and on_mesh and ordered == row_wise(table.name, shards)
            by_columns = len(pieces) == self.shards and pieces == column_wise(
                table.name, self.shards
            )
            for name in ("distinct", "group_distinct"):
                shares = [getattr(piece, name) for piece in pieces]
                if any(not 0 < share <= 1 for share in shares):
                    raise UserError(
                        f"table {table.name}: expected {name} to be a share above 0, up to 1, got "
                        f"{shares[0]}"
                    )
            over_all = any(
                pieces == fully_sharded(table.name, x.distinct, x.group_distinct) for x in pieces
            )
            if not (by_rows or by_columns or over_all or pieces == replicated(table.name)):
                raise UserError(
                    f"table {table.name}: its pieces must hold every row once, each on a shard "
                    f"of its own below {self.shards}, or all its columns in order over all "
                    f"shards, or be one on all devices; the plan has {_shortened(pieces)}"
                )
            if by_columns and table.dim % self.shards:
                raise UserError(
                    f"table {table.name}: its width {table.dim} can't be split evenly over "
                    f"{self.shards} shards; place it otherwise"
                )

    def to_json(self) -> str:
        """The plan as text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            UserError: the text isn't such a plan; the message names the fault.
        """
        try:
            fields = json.loads(text, object_pairs_hook=without_repeats)
        except (ValueError, RecursionError) as error:  # numbers may be too long, too
            raise UserError(f"a plan is JSON, as Plan.to_json writes it; got {error}") from None
        if not isinstance(fields, dict) or fields.keys() != {"shards", "pieces"}:
            raise UserError(
                f"a plan is an object with shards and pieces, got {_shortened(fields)}; "
                f"Plan.to_json writes one"
            )
        shards, pieces = fields["shards"], fields["pieces"]
        if type(shards) is not int or shards < 1:
            raise UserError(f"plan: expected shards to be a number from 1, got {shards!r}")
        if not isinstance(pieces, list):
            raise UserError(f"plan: expected pieces to be a list, got {_shortened(pieces)}")
        return cls(shards, tuple(_piece(number, piece) for number, piece in enumerate(pieces)))

    def describe(self, tables: Iterable[Table], groups: int = 1) -> str:
        """A text for people: one line per table, then the MiB of tables per shard.

        Args:
            tables: all tables.
            groups: number of data-parallel groups, over which fully sharded tables are split, too.
        """
        lines = []
        mib_by_shard = [0.0] * self.shards
        for table in tables:
            pieces = self.of(table.name)
            shard = "all"
            if self.placement(table.name) == "table_wise":
                shard = str(pieces[0].shard)
            elif pieces[0].shard is not None and len(pieces) < self.shards:
                shard = _run([piece.shard for piece in pieces if piece.shard is not None])
            mib = f"{table.nbytes / 2**20:.2f}"
            placement = self.placement(table.name)
            lines.append([table.name, f"{table.rows:,}", str(table.dim), placement, shard, mib])
            for piece in pieces:
                share = table.nbytes / 2**20 * piece.rows(table.rows) / table.rows / piece.splits
                share /= groups * self.shards if piece.fully_sharded else 1
                for k in range(self.shards) if piece.shard is None else (piece.shard,):
                    mib_by_shard[k] += share
        header = ("table", "rows", "dim", "placement", "shard", "MiB")
        sums = ", ".join(f"{mib:.1f}" for mib in mib_by_shard)
        return f"{text_table(header, lines, left=(0, 3))}\nMiB of tables per shard: {sums}"


def _piece(number: int, fields: object) -> Piece:
    """Reads a piece; an error names its number in the plan."""
    known = {field.name: field for field in dataclasses.fields(Piece)}
    if not isinstance(fields, dict) or not {"table", "shard"} <= fields.keys() <= known.keys():
        raise UserError(
            f"plan: piece {number}: expected an object with table, shard and any of "
            f"{', '.join(list(known)[2:])}, got {_shortened(fields)}"
        )
    for name, value in fields.items():
        low = 1 if name in ("modulus", "splits") else 0
        if name == "table":
            good, wanted = isinstance(value, str), "a name"
        else:
            good, wanted = type(value) is int and value >= low, f"a number from {low}"
            if name == "shard":
                good, wanted = good or value is None, f"{wanted}, or null for all shards"
            elif name == "fully_sharded":
                good, wanted = isinstance(value, bool), "true or false"
            elif name in ("distinct", "group_distinct"):
                good = type(value) in (int, float) and 0 < value <= 1
                wanted = "a share above 0, up to 1"
        if not good:
            raise UserError(f"plan: piece {number}: expected {name} to be {wanted}, got {value!r}")
    # Earlier plans have one share.
    return Piece(**{"group_distinct": fields.get("distinct", 1.0)} | fields)


def _run(shards: Sequence[int]) -> str:
    """Shards as text: a run as FIRST-LAST, as in the overrides of `automatic_plan`."""
    first, last = shards[0], shards[-1]
    if list(shards) == list(range(first, last + 1)):
        return f"{first}-{last}" if last > first else str(first)
    return ",".join(map(str, shards))


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
