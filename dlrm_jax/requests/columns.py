"""The columns of a log of requests: what each one is, and which table it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a log with a row for each request.

    Attributes:
        history: table of each column with what the user did, by column. They are lists, of equal
            lengths in a row, the oldest action first.
        candidates: table of each column with what is ranked, by column: lists of equal lengths, or
            all of them single values, where a request has one candidate.
        context: table of each column with single values of the request, by column.
        label: column of labels, 0 or 1, a list where the candidates are.
        history_time: column of the actions' times, lists; empty without.
        time: column of the requests' times; empty without.

    Raises:
        UserError: there is no column of the history or of the candidates, a column is named twice,
            or only one of the two has times.
    """

    history: Mapping[str, str]
    candidates: Mapping[str, str]
    context: Mapping[str, str]
    label: str = "label"
    history_time: str = ""
    time: str = ""

    def __post_init__(self) -> None:
        for name in ("history", "candidates"):
            if not getattr(self, name):
                raise UserError(f"{name}: expected at least one column, got none")
        names = [*self.history, *self.candidates, *self.context, self.label]
        names += [x for x in (self.history_time, self.time) if x]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"columns: {name!r} is there twice; a column is one thing")
        if self.history_time and not self.time:
            raise UserError(
                f"time: expected the column of the requests' times beside that of the histories', "
                f"{self.history_time!r}; got none"
            )

    @property
    def tables(self) -> dict[str, list[str]]:
        """The columns that read each table."""
        found: dict[str, list[str]] = {}
        for part in (self.history, self.candidates, self.context):
            for column, table in part.items():
                found.setdefault(table, []).append(column)
        return found

    @property
    def is_timed(self) -> bool:
        """Whether histories have times."""
        return bool(self.history_time)


def read_columns(field: str, items: Sequence[str]) -> dict[str, str]:
    """Reads ``("COLUMN:TABLE", …)`` as the table of each column.

    Args:
        field: name of the field, for messages.
        items: items; the table of one without a colon has the column's name.

    Raises:
        UserError: a name is empty, or a column is there twice.
    """
    found: dict[str, str] = {}
    for item in items:
        column, separator, table = item.partition(":")
        if not column or (separator and not table):
            raise UserError(f"{field}: expected COLUMN or COLUMN:TABLE, got {item!r}")
        if column in found:
            raise UserError(f"{field}: {column!r} is there twice")
        found[column] = table or column
    return found
