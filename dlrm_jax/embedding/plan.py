"""How tables are cut into pieces, and on which shard each piece lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError

PLACEMENTS = ("replicated", "table_wise", "row_wise", "column_wise")

# Tables this small cost less as a copy on every device, whose gradients are summed
# densely, than as a slot in the exchange.
REPLICATED_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a table, on one shard or, for None, on every one.

    It holds the rows r ≡ residue (mod modulus), dealt out in turn rather than in blocks, so that
    ids ordered by frequency load all shards alike; of these, one of ``splits`` equal blocks of
    columns.
    """

    table: str
    shard: int | None
    modulus: int = 1
    residue: int = 0
    splits: int = 1
    split: int = 0

    def rows(self, table_rows: int) -> int:
        """How many of the table's rows the piece holds."""
        return (table_rows - self.residue + self.modulus - 1) // self.modulus


def replicated(table: str) -> tuple[Piece, ...]:
    """The whole table on every shard."""
    return (Piece(table, None),)


def table_wise(table: str, shard: int) -> tuple[Piece, ...]:
    """The whole table on one shard."""
    return (Piece(table, shard),)


def row_wise(table: str, shards: Sequence[int]) -> tuple[Piece, ...]:
    """The rows dealt out over these shards, such as those of one host."""
    return tuple(Piece(table, shard, len(shards), k) for k, shard in enumerate(shards))


def column_wise(table: str, shards: int) -> tuple[Piece, ...]:
    """The columns in equal blocks over all shards, each of which then holds every row."""
    return tuple(Piece(table, k, splits=shards, split=k) for k in range(shards))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The pieces of all tables on ``shards`` shards, the size of the mesh's model axis."""

    shards: int
    pieces: tuple[Piece, ...]

    def of(self, table: str) -> tuple[Piece, ...]:
        """The pieces of one table."""
        return tuple(piece for piece in self.pieces if piece.table == table)

    def placement(self, table: str) -> str:
        """One of `PLACEMENTS`."""
        first = self.of(table)[0]
        if first.shard is None:
            return "replicated"
        if first.splits > 1:
            return "column_wise"
        return "table_wise" if first.modulus == 1 else "row_wise"

    def check(self, tables: Sequence[Table]) -> None:
        """Every element of every table must lie in exactly one piece.

        Raises:
            UserError: naming the table.
        """
        unknown = {piece.table for piece in self.pieces} - {table.name for table in tables}
        if unknown:
            raise UserError(f"the plan places unknown table(s) {', '.join(sorted(unknown))}")
        for table in tables:
            pieces = self.of(table.name)
            if pieces and pieces[0].splits > 1:
                good = pieces == column_wise(table.name, self.shards)
                if good and table.dim % self.shards:
                    raise UserError(
                        f"table {table.name}: its width {table.dim} can't be split evenly over "
                        f"{self.shards} shards; place it otherwise"
                    )
            else:
                wanted = [(k, len(pieces)) for k in range(len(pieces))]
                whole = sorted((piece.residue, piece.modulus) for piece in pieces) == wanted
                shards = {piece.shard for piece in pieces}
                on_mesh = shards == {None} or shards <= set(range(self.shards))
                good = pieces and whole and on_mesh and len(shards) == len(pieces)
            if not good:
                raise UserError(
                    f"table {table.name}: its pieces must hold every row once, each on a shard "
                    f"of its own below {self.shards}, or all its columns in order over all "
                    f"shards; the plan has {pieces}"
                )

    def to_json(self) -> str:
        """The plan as text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        fields = json.loads(text)
        return cls(fields["shards"], tuple(Piece(**piece) for piece in fields["pieces"]))

    def describe(self, tables: Iterable[Table]) -> str:
        """A table for people: one line a table, then the bytes of weights per shard."""
        header = (
            f"{'table':<12} {'rows':>12} {'dim':>5}  {'placement':<11} {'shard':>5} {'MiB':>10}"
        )
        lines = [header]
        held = [0.0] * self.shards
        for table in tables:
            pieces = self.of(table.name)
            shard = "all"
            if self.placement(table.name) == "table_wise":
                shard = str(pieces[0].shard)
            elif pieces[0].shard is not None and len(pieces) < self.shards:
                shard = ",".join(str(piece.shard) for piece in pieces)
            lines.append(
                f"{table.name:<12} {table.rows:>12,} {table.dim:>5}  "
                f"{self.placement(table.name):<11} {shard:>5} {table.nbytes / 2**20:>10.2f}"
            )
            for piece in pieces:
                share = table.nbytes / 2**20 * piece.rows(table.rows) / table.rows / piece.splits
                for k in range(self.shards) if piece.shard is None else (piece.shard,):
                    held[k] += share
        lines.append(f"MiB of weights per shard: {', '.join(f'{mib:.1f}' for mib in held)}")
        return "\n".join(lines)


def automatic_plan(
    tables: Sequence[Table], shards: int, placements: Mapping[str, str] | None = None
) -> Plan:
    """A simple plan: small tables everywhere, large ones cut by rows, the rest dealt out.

    A table is cut by rows when it holds more than a quarter of one shard's mean share;
    whole tables go, largest first, to the shard with the fewest tables, then the fewest
    bytes, so that no shard's part of the exchange is mostly padding.

    Args:
        tables: all tables.
        shards: the size of the mesh's model axis.
        placements: by table name, what to do instead: ``"replicated"``, ``"column_wise"``,
            ``"row_wise"``, ``"table_wise"`` or, with shards, ``"row_wise:0-3"``,
            ``"table_wise:2"``.

    Raises:
        UserError: an override names no table or is none of these.
    """
    chosen = dict(placements or {})
    unknown = chosen.keys() - {table.name for table in tables}
    if unknown:
        raise UserError(
            f"placements: no table named {', '.join(sorted(unknown))}; "
            f"there are {', '.join(table.name for table in tables)}"
        )
    share = sum(table.nbytes for table in tables) / shards
    pieces: dict[str, tuple[Piece, ...]] = {}
    load = [(0, 0)] * shards  # (tables, bytes) of the whole tables on each shard
    for table in sorted(tables, key=lambda table: -table.nbytes):
        placement, colon, shard = chosen.get(table.name, _default(table, share, shards)).partition(
            ":"
        )
        with_shards = placement in ("table_wise", "row_wise")
        if placement not in PLACEMENTS or (colon and not with_shards):
            raise UserError(
                f"placements: table {table.name}: expected replicated, column_wise, row_wise, "
                f"row_wise:FIRST-LAST, table_wise or table_wise:SHARD, got {chosen[table.name]!r}"
            )
        if placement == "replicated":
            pieces[table.name] = replicated(table.name)
        elif placement == "column_wise":
            pieces[table.name] = column_wise(table.name, shards)
        elif placement == "row_wise":
            group = _shards(table.name, shard, shards) if colon else range(shards)
            pieces[table.name] = row_wise(table.name, group)
        else:
            k = _shard(table.name, shard, shards) if colon else load.index(min(load))
            pieces[table.name] = table_wise(table.name, k)
            load[k] = (load[k][0] + 1, load[k][1] + table.nbytes)
    return Plan(shards, tuple(piece for table in tables for piece in pieces[table.name]))


def _default(table: Table, share: float, shards: int) -> str:
    if shards == 1:
        return "table_wise"
    if table.rows <= REPLICATED_ROWS:
        return "replicated"
    return "row_wise" if table.nbytes > share / 4 else "table_wise"


def _shards(table: str, text: str, shards: int) -> range:
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
