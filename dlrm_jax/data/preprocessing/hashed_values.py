"""Hashes of a log's values, the same in every log and version: 7, 7.0 and the text 7 are one."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import polars as pl
from jaxtyping import Int64, UInt64

from dlrm_jax.errors import UserError

WITHOUT_TEXT = (pl.List, pl.Array, pl.Struct, pl.Object, pl.Binary, pl.Duration)
"""Types of columns whose values have no text."""

WHOLE = re.compile(r"^-?(0)\.0+\Z|^(-?\d+)\.0+\Z")
"""The text of a whole number with a point, as `as_text` finds it; 7 is the same value."""

_NO_GROUP = -1


def group_codes(values: pl.Series) -> Int64[np.ndarray, " n"]:
    """The code of each value, 63 bits of its hash; -1 of a missing one.

    Raises:
        UserError: the values have no text, such as lists.
    """
    if isinstance(values.dtype, WITHOUT_TEXT):
        raise UserError(
            f"column {values.name!r}: expected single values to group rows by, got {values.dtype}; "
            f"name another column"
        )
    texts = as_text(values)
    known = texts.drop_nulls().unique()
    codes = (hashes(known, "groups") >> np.uint64(1)).astype(np.int64)
    of_text = pl.DataFrame({"value": known, "code": codes})
    rows = texts.alias("value").to_frame()
    found = rows.join(of_text, on="value", how="left", maintain_order="left")["code"]
    return found.fill_null(_NO_GROUP).to_numpy()


def hashes(values: pl.Series, key: str) -> UInt64[np.ndarray, " n"]:
    """A hash of each text, which depends on text and key alone."""
    keyed = hashlib.blake2b(digest_size=8, key=key.encode())

    def digest(value: str) -> bytes:  # Polars' own hash may change with its version
        own = keyed.copy()
        own.update(value.encode())
        return own.digest()

    return np.frombuffer(b"".join(map(digest, values)), ">u8").astype(np.uint64)


def as_text(values: pl.Series) -> pl.Series:
    """The values as text, each by itself; whole numbers as integers, also 7.0 and the text 7.0.

    A missing value makes floats of a column, and pandas then writes 7.0.
    """
    text = pl.col("x").cast(pl.String)
    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = pl.col("x").cast(pl.Int128, strict=False)  # UInt64's values, too
        same = whole.cast(values.dtype) == pl.col("x")
        text = pl.when(same).then(whole.cast(pl.String)).otherwise(text)
    text = text.str.replace(WHOLE.pattern.replace(r"\Z", "$"), "${1}${2}")
    return values.to_frame("x").select(text.alias("x"))["x"]
