"""The time of a log by its rows, some of which may have a clock that is far ahead.

A window ends by the times of rows. So one row of next year would end all of them, before the
events of the other rows have come.
"""

from __future__ import annotations

import datetime

import polars as pl

_SHARE = 100
"""Rows of which one may be ahead of the others."""


def time_of_most(times: pl.Series, window: int, limit: int | None) -> int:
    """The latest time, but for those that are ahead.

    Ahead are times behind the limit, and up to 1 in 100 of all that are more than a window behind
    the others. They may be right, such as the first ones after a night without rows: then the next
    ones say so.

    Args:
        times: times in microseconds since 1970.
        window: length of the window, in microseconds.
        limit: latest time that is possible; None if that isn't known.

    Returns:
        0 if there is none.
    """
    possible = (times if limit is None else times.filter(times <= limit)).sort()
    if not len(possible):
        return 0
    last = possible.tail(len(times) // _SHARE + 1)
    gaps = (last.diff() > window).fill_null(False)
    return int(last[gaps.arg_max() - 1] if gaps.any() else last[-1])  # pyright: ignore


def times_ahead(times: pl.Series, window: int, limit: int) -> str | None:
    """A sentence on the times that are ahead, see `time_of_most`; None without any."""
    most = time_of_most(times, window, limit)
    ahead = times.filter((times > most + window) | (times > limit))
    if not len(ahead):
        return None
    last = as_text(int(ahead.max()))  # pyright: ignore[reportArgumentType]
    others = f"the others, up to {as_text(most)}" if most else "this machine's clock"
    return (
        f"{len(ahead):,} of {len(times):,} times are ahead of {others}: up to {last}. They end no "
        f"window, and are held until the others get there; see that the clocks are right"
    )


def as_text(microseconds: int) -> str:
    """A time since 1970 as people read it, in UTC."""
    instant = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=microseconds)
    return f"{instant:%Y-%m-%d %H:%M:%S}"
