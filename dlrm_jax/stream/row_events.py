"""Rows and their events, which have one id, and times within a window."""

from __future__ import annotations

import polars as pl

from dlrm_jax.errors import UserError

TIME = "__time"
"""Column of times, in microseconds since 1970."""

_EVENT, _ROW, _NUMBER = "__event", "__row", "__number"  # of pairs: its time; row of each frame

OWN = (TIME, _EVENT, _ROW, _NUMBER)
"""Names that a column of ids can't have."""


def check_ids(rows: pl.DataFrame, column: str, window: int) -> None:
    """Checks that rows of one id are a window apart.

    Args:
        rows: rows with `TIME`.
        column: name of the column of ids.
        window: length of the window, in microseconds.

    Raises:
        UserError: two rows of one id are nearer.
    """
    twice = rows.filter(rows[column].is_duplicated()).sort(column, TIME)
    is_near = (twice[column] == twice[column].shift()) & (twice[TIME].diff() < window)
    if is_near.any():
        raise UserError(
            f"late labels: expected ids that name one row each within the window, got "
            f"{column} {twice[column].filter(is_near.fill_null(False))[0]!r} twice"
        )


def match(
    rows: pl.DataFrame, events: pl.DataFrame, column: str, window: int
) -> tuple[pl.Series, pl.Series]:
    """Finds the events of rows. An event is that of the first row to whose window it belongs.

    Args:
        rows: rows with `TIME`.
        events: ids and `TIME`. An event belongs to the windows of rows that are at most a window
            earlier, or by less than a window later.
        column: name of the column of ids.
        window: length of the window, in microseconds.

    Returns:
        The time of the first event of each row, null without one, and whether each event has a
        row.
    """
    numbered = rows.select(column, TIME).with_row_index(_ROW)
    others = events.rename({TIME: _EVENT}).with_row_index(_NUMBER)
    pairs = numbered.join(others, on=column).filter(
        pl.col(_EVENT) <= pl.col(TIME) + window, pl.col(_EVENT) + window > pl.col(TIME)
    )
    pairs = pairs.sort(TIME).unique(_NUMBER, keep="first")
    first = pairs.group_by(_ROW).agg(pl.col(_EVENT).min())
    times = numbered.join(first, on=_ROW, how="left", maintain_order="left")[_EVENT]
    found = others.select(pl.col(_NUMBER).is_in(pairs[_NUMBER].implode()))[_NUMBER]
    return times, found
