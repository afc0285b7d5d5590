"""The types of a log's values, and a client's values in them."""

from __future__ import annotations

import datetime
import re
from typing import Any

import polars as pl

from dlrm_jax.errors import UserError, shown

_OTHERS = (pl.String, pl.Boolean, pl.Date, pl.Datetime, pl.Null)
_TOO_FINE = re.compile(r"[.,]\d{7}")  # Python cuts nanoseconds off


def is_nameable(kind: Any) -> bool:
    """Whether a request of JSON can name the values of a type, dates as text."""
    return kind.is_integer() or kind.is_float() or kind in _OTHERS


def datatype_of(kind: Any) -> str:
    """The type of values in the Open Inference Protocol."""
    if kind.is_float():
        return "FP32" if kind == pl.Float32 else "FP64"
    if kind == pl.Boolean:
        return "BOOL"
    return "INT64" if kind.is_integer() else "BYTES"


def as_logged(values: pl.Series, kind: Any) -> pl.Series:
    """A client's values, of which dates may be text, as a vocabulary takes them.

    Args:
        values: values; null is a missing one.
        kind: type of the log's values.

    Raises:
        UserError: they are something else.
    """
    own: Any = values.dtype
    if pl.Null in (own, kind) or own == kind or (own.is_numeric() and kind.is_numeric()):
        return values
    if own == pl.String and kind in (pl.Date, pl.Datetime):
        return _dates(values, kind)
    if own == pl.Datetime and kind == pl.Datetime and bool(own.time_zone) == bool(kind.time_zone):
        return _in_type(values, kind)
    raise UserError(f"expected {_described(kind)}, as in the log, got {_described(own)}")


def _dates(texts: pl.Series, kind: Any) -> pl.Series:
    """Dates, or times, that are text."""
    found = [None if text is None else _moment(text, kind) for text in texts]
    for text, moment in zip(texts, found, strict=True):
        if moment is None and text is not None:
            raise UserError(f"expected {_described(kind)}, as in the log, got {shown(text)}")
    if kind == pl.Date:
        return pl.Series(found, dtype=pl.Date)
    times = pl.Series(found, dtype=pl.Datetime("us"))
    return _in_type(times if kind.time_zone is None else times.dt.replace_time_zone("UTC"), kind)


def _in_type(times: pl.Series, kind: Any) -> pl.Series:
    """Times in another unit and zone."""
    own: Any = times.dtype
    found = times.cast(pl.Datetime(kind.time_unit, own.time_zone), strict=False)
    if not (same := found.cast(own).eq_missing(times)).all():
        raise UserError(
            f"expected times that {kind} holds, as in the log, got {times.filter(~same)[0]}"
        )
    return found if kind.time_zone is None else found.dt.convert_time_zone(kind.time_zone)


def _moment(text: str, kind: Any) -> datetime.date | None:
    """A date, or a time without a zone, in UTC if the log's has one; None for other text."""
    try:
        if kind == pl.Date:
            return datetime.date.fromisoformat(text)
        moment = datetime.datetime.fromisoformat(text)
        if (moment.tzinfo is None) != (kind.time_zone is None) or _TOO_FINE.search(text):
            return None
        in_utc = moment.astimezone(datetime.UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None
    return in_utc.replace(tzinfo=None)


def _described(kind: Any) -> str:
    """What a client calls values of a type."""
    if kind.is_numeric():
        return "numbers"
    if kind == pl.Date:
        return "dates such as 2026-01-31"
    if kind == pl.Datetime:
        return f"times such as 2026-01-31T12:00:00{'' if kind.time_zone is None else '+00:00'}"
    return {pl.String: "text", pl.Boolean: "booleans"}.get(kind, str(kind))
