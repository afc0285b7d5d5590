"""Values of categorical columns as 64-bit ids, the same in every segment and version.

An integer of 64 bits is its own id (in two's complement), also as 7.0 and as the text 7. Any other
value has the XXH3 hash, of 64 bits, of its text. Among n different texts, two share an id with a
probability of about n²/2^65: 3e-6 for ten million. A missing value is a value, too.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import polars as pl
import xxhash
from jaxtyping import Bool, Int64, UInt64

from dlrm_jax.data.preprocessing.hashed_values import WHOLE, WITHOUT_TEXT, as_text
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

MISSING = 1 << 63
"""The id of a missing value, which is that of the smallest int64."""

ABSENT_ID = MISSING + 1
"""What stands for an unused place of a bag among ids that are to be predicted."""

_MASK, _DIGITS = 2**64 - 1, 21
_LARGEST = 2**127  # of whole numbers that have text in a column


class RawIds(NamedTuple):
    """The ids of N examples; the bags of all columns lie side by side.

    Attributes:
        ids: ids of the values, [N, C].
        present: whether a place of a bag is used, [N, C].
    """

    ids: UInt64[np.ndarray, "N C"]
    present: Bool[np.ndarray, "N C"]


def raw_ids(frame: pl.DataFrame, schema: Schema, place: str) -> RawIds:
    """The ids of rows.

    Args:
        frame: rows with the columns ``c0``, ``c1``, … of `normalize_columns`.
        schema: meaning of the columns.
        place: description of the rows for messages.

    Raises:
        UserError: a column has a type without text.
    """
    ids = np.zeros((len(frame), sum(schema.lengths)), np.uint64)
    present = np.ones(ids.shape, bool)
    start = 0
    for i, (name, length) in enumerate(zip(schema.categorical, schema.lengths, strict=True)):
        values = frame[f"c{i}"]
        is_bag = isinstance(values.dtype, pl.List)
        kind = getattr(values.dtype, "inner", values.dtype)
        if isinstance(kind, WITHOUT_TEXT):
            raise UserError(
                f"{place}, column {name}: expected numbers, text or dates, got {kind}; write the "
                f"values as one of them"
            )
        stop = start + length
        if is_bag:
            used = values.list.len().fill_null(0).to_numpy()
            own = np.arange(length) < used[:, None]
            ids[:, start:stop][own] = ids_of(values.filter(used > 0).explode())
            present[:, start:stop] = own
        else:
            ids[:, start] = ids_of(values)
        start = stop
    return RawIds(ids, present)


def ids_of(values: pl.Series) -> UInt64[np.ndarray, " N"]:
    """The id of each value; `MISSING` of null and NaN."""
    kind = values.dtype
    if kind.is_integer() and kind not in (pl.Int128, pl.UInt128):
        wide = pl.UInt64 if kind == pl.UInt64 else pl.Int64
        missing = MISSING if wide == pl.UInt64 else -MISSING
        return values.cast(wide).fill_null(missing).to_numpy().view(np.uint64)
    if kind.is_float():
        values = values.fill_nan(None)
    values = values.rename("value")
    known = values.drop_nulls().unique()  # most values are there many times
    if not len(known):
        return np.full(len(values), MISSING, np.uint64)
    of_value = pl.DataFrame({"value": known, "id": _of_texts(as_text(known))})
    found = values.to_frame().join(of_value, on="value", how="left", maintain_order="left")["id"]
    return found.fill_null(MISSING).to_numpy()


def joined(raw: RawIds, schema: Schema, place: str, first_row: int = 0) -> Int64[np.ndarray, "N C"]:
    """The ids as one array of signed numbers, by their bits, with `ABSENT_ID` in unused places.

    Args:
        raw: ids.
        schema: columns whose ids they are.
        place: description of the rows for messages.
        first_row: number of the first of them.

    Raises:
        UserError: a value has the id that stands for an unused place.
    """
    if (reserved := (raw.ids == ABSENT_ID) & raw.present).any():
        row, place_of_id = np.argwhere(reserved)[0].tolist()
        names = np.repeat(schema.categorical, schema.lengths)
        raise UserError(
            f"{place}, row {first_row + row}, column {names[place_of_id]}: expected other ids than "
            f"{ABSENT_ID - 2**64} and {ABSENT_ID}, which stand for none; give the value another one"
        )
    return np.where(raw.present, raw.ids, np.uint64(ABSENT_ID)).view(np.int64)


def group_codes(raw: RawIds, place: int) -> Int64[np.ndarray, " N"]:
    """The code of the group that each example is in by its id at one place.

    A group is an id; two share a code with a probability of about n²/2^64. A code isn't negative,
    as -1 is no group: that of an empty bag.
    """
    codes = (mixed(raw.ids[:, place]) >> np.uint64(1)).view(np.int64)
    return np.where(raw.present[:, place], codes, -1)


def mixed(x: UInt64[np.ndarray, "*_"]) -> UInt64[np.ndarray, "*_"]:
    """Bits that all depend on all bits of x (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def id_of(value: object) -> int | None:
    """The id of a Python value, as `ids_of` gives it in a column of its kind.

    Returns:
        None for a value that isn't None, text, a truth value, or a finite number below 2^127.
    """
    if value is None:
        return MISSING
    if type(value) is int:
        if -MISSING <= value <= _MASK:
            return value & _MASK
        return _of_text(str(value)) if abs(value) < _LARGEST else None
    if type(value) is bool:
        return _of_text("true" if value else "false")
    if type(value) is float:
        if math.isnan(value):
            return MISSING
        return _of_text(_float_text(value)) if abs(value) < _LARGEST else None
    return _of_text(WHOLE.sub(r"\1\2", value)) if type(value) is str else None


@functools.lru_cache(1 << 12)
def _float_text(value: float) -> str:
    return as_text(pl.Series([value])).item()


def _of_text(text: str) -> int:
    """The id of a text that `as_text` gives."""
    if text.isascii() and text.removeprefix("-").isdigit():
        number = int(text[:_DIGITS])
        if str(number) == text and -MISSING <= number <= _MASK:  # 007 is text
            return number & _MASK
    return xxhash.xxh3_64_intdigest(text.encode())


def _of_texts(texts: pl.Series) -> UInt64[np.ndarray, " N"]:
    found = np.array([xxhash.xxh3_64_intdigest(x.encode()) for x in texts.to_list()], np.uint64)
    for kind in (pl.Int64, pl.UInt64):
        numbers = texts.cast(kind, strict=False)
        same = (numbers.cast(pl.String) == texts).fill_null(False).to_numpy()  # 007 is text
        found[same] = numbers.fill_null(0).to_numpy().view(np.uint64)[same]
    return found
