"""Names of days for people."""

from __future__ import annotations

import datetime

from dlrm_jax.data.metadata import Metadata


def day_names(metadata: Metadata | None, count: int, prefix: str = "") -> list[str]:
    """The dates of the days, if each date has a day; otherwise their numbers from 0.

    Args:
        metadata: description of the data; None if there is none.
        count: number of days.
        prefix: text before a number.
    """
    if metadata and metadata.dates:
        first, last = map(datetime.date.fromisoformat, metadata.dates)
        if (last - first).days + 1 == count:
            return [str(first + datetime.timedelta(i)) for i in range(count)]
    return [f"{prefix}{i}" for i in range(count)]
