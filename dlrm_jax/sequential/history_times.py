"""The times of a history that comes from outside, relative to that of the question."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int32, Int64

from dlrm_jax.errors import UserError, shown
from dlrm_jax.sequential.single_values import as_series

FAR = 2**53
"""Most seconds from 1970, before it or after: no difference of two such times wraps."""


def relative_times(times: Any, time: Any, count: int) -> Int32[np.ndarray, " n"]:
    """The times of n items in seconds from the question's; none is positive.

    Args:
        times: time of each item, ascending, in integers of seconds or dates.
        time: time of the question, not before the last one.
        count: number of items, n.

    Raises:
        UserError: they aren't that, or 68 years or more lie between them.
    """
    for name, given in (("times", times), ("time", time)):
        if given is None:
            raise UserError(
                f"{name}: expected the times of the history and that of the question, as hstu "
                f"reads both, got none"
            )
    own, asked = seconds_of("times", times), second_of("time", time)
    if len(own) != count:
        raise UserError(f"times: expected {count:,}, one an item, got {len(own):,}")
    found = own - asked
    if (np.diff(own) < 0).any() or (found > 0).any():
        raise UserError(
            "times: expected them ascending, and that of the question not before the last one; "
            "give the oldest item first"
        )
    if (found <= -(2**31)).any():
        raise UserError(
            f"times: expected less than 68 years before the question's, got {-found.min():,} "
            f"seconds; give them in seconds"
        )
    return found.astype(np.int32)


def seconds_before(seconds: Int64[np.ndarray, " n"], time: int) -> Int32[np.ndarray, " n"]:
    """The seconds of actions from their request on, none of which is positive.

    Args:
        seconds: seconds of actions.
        time: second of their request.

    Raises:
        UserError: an action comes after the request, or 68 years before it.
    """
    found = seconds - time
    if (found > 0).any():
        place = int(np.argmax(found > 0))
        raise UserError(
            f"times: expected none after that of the request, as in the log, got one "
            f"{found[place]:,} seconds after it, at place {place:,}"
        )
    if (found <= -(2**31)).any():
        raise UserError(
            f"times: expected less than 68 years before the request's, got {-found.min():,} "
            f"seconds; give them in seconds"
        )
    return found.astype(np.int32)


def refuse_times(encoder: str, **given: Any) -> None:
    """Refuses times for an encoder that doesn't read them.

    Args:
        encoder: name of the encoder.
        given: values by name; None for none.

    Raises:
        UserError: there are some.
    """
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name}: expected none, as {encoder} reads no times; leave it out")


def seconds_of(name: str, times: Any) -> Int64[np.ndarray, " n"]:
    """Times that come from outside in seconds from 1970.

    Args:
        name: name of the field, for messages.
        times: integers of seconds, or dates.

    Raises:
        UserError: they aren't that.
    """
    found = _seconds(times)
    if found is None:
        raise UserError(
            f"{name}: expected integers of seconds, or date objects of Python, got {shown(times)}"
        )
    return found


def second_of(name: str, time: Any) -> int:
    """A time that comes from outside in seconds from 1970.

    Args:
        name: name of the field, for messages.
        time: integer of seconds, or a date.

    Raises:
        UserError: it isn't that.
    """
    found = _seconds([time])
    if found is None:
        raise UserError(
            f"{name}: expected an integer of seconds, or a date object of Python, got {shown(time)}"
        )
    return int(found[0])


def _seconds(times: Any) -> Int64[np.ndarray, " n"] | None:
    """Times in seconds; None if they are something else."""
    found = as_series(times)
    if found is None:
        return None
    if found.dtype in (pl.Date, pl.Datetime):
        found = found.cast(pl.Datetime("us")).dt.epoch("s")
    if found.is_empty():
        return np.zeros(0, np.int64)
    if not found.dtype.is_integer() or found.null_count():
        return None
    own = found.cast(pl.Int64, strict=False)  # null for what is larger
    if own.null_count() or not own.is_between(-FAR, FAR).all():
        return None
    return own.to_numpy()
