"""Interactions of users with items, user by user in the order of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
from jaxtyping import Int32, Int64

from dlrm_jax.errors import UserError
from dlrm_jax.sequential.history_times import FAR


@dataclasses.dataclass(frozen=True)
class Interactions:
    """N interactions of U users with V items. Those of a user lie side by side.

    Attributes:
        offsets: place of the first interaction of each user, and N behind, [U + 1].
        items: number of the item of each interaction, from 0 to V - 1, [N].
        times: its time in seconds, ascending for each user, [N].
        users: value of each user in the log, [U].
        values: value of each item in the log, [V].
    """

    offsets: Int64[np.ndarray, " U1"]
    items: Int32[np.ndarray, " N"]
    times: Int64[np.ndarray, " N"]
    users: pl.Series
    values: pl.Series

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> Int64[np.ndarray, " U"]:
        """The number of interactions of each user, [U]."""
        return np.diff(self.offsets)


def interactions_of(log: pl.DataFrame, user: str, item: str, time: str) -> Interactions:
    """The interactions of a log. Those of one time stay in the order of the log.

    Args:
        log: table with a row for each interaction.
        user: name of the column of users.
        item: name of the column of items.
        time: name of the column of times: numbers of seconds, or dates.

    Raises:
        UserError: there is no row, no such column, or one is named twice; a value is missing or a
            list; or times are none.
    """
    names = (user, item, time)
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"expected three columns, of users, items and times, got {', '.join(names)}: "
                f"{name!r} is there twice"
            )
        if name not in log.columns:
            raise UserError(
                f"the log has no column {name!r}; it has {', '.join(map(repr, log.columns))}"
            )
        if log[name].dtype.is_nested():
            raise UserError(
                f"column {name!r}: expected a value a row, got {log[name].dtype}; unpack it first"
            )
        missing = log[name].is_null()
        if log[name].dtype.is_float():
            missing |= log[name].is_nan().fill_null(value=True)
        if missing.any():
            raise UserError(
                f"column {name!r}: {missing.sum():,} of {len(log):,} rows have no value, the first "
                f"one is row {missing.arg_true()[0] + 1:,}; leave them out"
            )
    if log.is_empty():
        raise UserError("expected a log of interactions, got none")
    seconds = _seconds(log[time], time)
    # By the time as it is: seconds have no order within one.
    by_user = log.select(
        user=pl.col(user), item=pl.col(item), time=seconds, exact=pl.col(time)
    ).sort("user", "exact", maintain_order=True)
    users = by_user["user"].unique(maintain_order=True)
    counts = by_user.group_by("user", maintain_order=True).len()["len"]
    values = by_user["item"].unique().sort()
    numbers = pl.DataFrame({"item": values}).with_row_index("number")
    items = by_user.join(numbers, on="item", how="left", maintain_order="left")["number"]
    return Interactions(
        np.concatenate([[0], np.cumsum(counts.to_numpy(), dtype=np.int64)]),
        items.to_numpy().astype(np.int32),
        by_user["time"].to_numpy(),
        users,
        values,
    )


def counts_in(
    interactions: Interactions, firsts: Int64[np.ndarray, " n"], ends: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " V"]:
    """The number of interactions with each item in some ranges, those in two of them twice, [V].

    Args:
        interactions: interactions.
        firsts: place of the first interaction of each range.
        ends: place behind its last one, not before ``firsts``.
    """
    changes = np.zeros(len(interactions) + 1, np.int64)
    np.add.at(changes, firsts, 1)
    np.add.at(changes, ends, -1)
    times = np.cumsum(changes)[:-1]
    found = np.bincount(interactions.items, times, len(interactions.values))
    return found.astype(np.int64)


def _seconds(times: pl.Series, name: str) -> pl.Series:
    if times.dtype in (pl.Date, pl.Datetime):
        return times.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Int64)
    if not times.dtype.is_numeric():
        raise UserError(
            f"column {name!r}: expected seconds as numbers, or dates, got {times.dtype}"
        )
    found = times.cast(pl.Int64, strict=False)  # null for what is larger
    is_far = ~found.is_between(-FAR, FAR).fill_null(value=False)
    if is_far.any():
        row = is_far.arg_true()[0]
        raise UserError(
            f"column {name!r}: expected seconds from 1970 of at most {FAR:,}, before it or after, "
            f"row {row + 1:,} has {times[row]}; give them in seconds"
        )
    return found
