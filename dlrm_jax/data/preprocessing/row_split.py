"""Gives each row of a log its split while the log is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, UInt8

from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.data.given_split import read_split
from dlrm_jax.data.preprocessing.split_rule import PARTS, SplitRule
from dlrm_jax.errors import UserError

_WITHOUT_TEXT = (pl.List, pl.Array, pl.Struct, pl.Object, pl.Binary, pl.Duration)
_FRACTION = 1  # one more number in the seed than the negatives that are left out have


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a frame in the logs.

    Attributes:
        path: its file.
        number: index of the file.
        first: number of its first row in the file, from 1.
        part: number of rows before it in its chunk, if it is a part of one.
        before: number of rows of all earlier files.
    """

    path: Path
    number: int
    first: int
    part: int = 0
    before: int = 0


class RowSplit:
    """The split of each row, as its place in `PARTS`.

    It depends on the rule, the seed, the row and its place alone, so a resumed call gives the same.

    Args:
        rule: rule that decides by row.
        seed: seed of the random choice.

    Raises:
        UserError: the file of a given split can't be read.
    """

    def __init__(self, rule: SplitRule, seed: int):
        self.column = rule.column
        self._rule, self._seed = rule, seed
        self._given = read_split(Path(rule.name)) if rule.kind == "rows" else None

    def check_columns(self, path: Path, types: Mapping[str, Any]) -> None:
        """Checks that a file has the column that decides.

        Raises:
            UserError: it hasn't, or the column's values have no text.
        """
        if self.column is None:
            return
        if self.column not in types:
            raise UserError(
                f"{path} has no column {self.column!r} that --split={self._rule} names; its "
                f"columns are {', '.join(types)}"
            )
        if isinstance(types[self.column], _WITHOUT_TEXT):
            raise UserError(
                f"{path}, column {self.column}: --split={self._rule} needs one number, text or "
                f"date a row, got {types[self.column]}"
            )

    def valid_rows(
        self, path: Path, frame: pl.DataFrame, first: int, on_bad_line: OnBadLine
    ) -> pl.DataFrame:
        """The rows whose column names a split; all of them for other rules.

        Raises:
            UserError: a value is no name of a split; the message names the row.
        """
        if self._rule.kind != "column" or self.column is None:
            return frame
        values = frame[self.column].cast(pl.String, strict=False)
        good = values.is_in(list(PARTS)).fill_null(False)
        if on_bad_line == "stop" and not good.all():
            row = good.arg_min() or 0
            raise UserError(
                f"{path}, row {first + row}, column {self.column}: expected train, validation or "
                f"test, got {values[row]!r}"
            )
        return frame.filter(good)

    def __call__(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """The split of each row, a column ``split`` of UInt8."""
        if self._given is not None:
            return pl.Series("split", self._given_rows(len(frame), place))
        if self._rule.kind == "fraction":
            seed = [self._seed, _FRACTION, place.number, place.first - place.part]
            draws = np.random.default_rng(seed).random(place.part + len(frame))
            return pl.Series("split", self._part_of(draws[place.part :]))
        values = _as_text(frame[self.column or ""])
        if self._rule.kind == "column":
            known, parts = pl.Series(PARTS), np.arange(len(PARTS), dtype=np.uint8)
        else:
            known = values.drop_nulls().unique()
            parts = self._part_of(_draws(known, self._seed))
        split_of = pl.DataFrame({"value": known, "split": parts})
        rows = values.alias("value").to_frame()
        return rows.join(split_of, on="value", how="left", maintain_order="left")[
            "split"
        ].fill_null(0)

    def check_rows(self, rows: int) -> None:
        """Checks that a given split is that of logs with so many rows.

        Raises:
            UserError: it has another number of rows.
        """
        if self._given is not None and rows != len(self._given):
            raise UserError(self._other_length(f"the logs have {rows:,}"))

    def _given_rows(self, count: int, place: Place) -> UInt8[np.ndarray, " n"]:
        assert self._given is not None
        start = place.before + place.first - 1
        if start + count > len(self._given):
            raise UserError(self._other_length(f"the logs have more, up to {place.path}"))
        return self._given[start : start + count]

    def _other_length(self, found: str) -> str:
        given = 0 if self._given is None else len(self._given)
        return f"{self._rule.name}: it has the split of {given:,} rows, but {found}; give one each"

    def _part_of(self, draws: Float64[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
        """The split of each draw from [0, 1): the first share validates, the second tests."""
        validation, test = self._rule.sizes
        parts = np.zeros(len(draws), np.uint8)
        parts[draws < validation + test] = PARTS.index("test")
        parts[draws < validation] = PARTS.index("validation")
        return parts


def _draws(values: pl.Series, seed: int) -> Float64[np.ndarray, " n"]:
    """A number from [0, 1) for each text, which depends on text and seed alone."""
    keyed = hashlib.blake2b(digest_size=8, key=str(seed).encode())

    def digest(value: str) -> bytes:  # Polars' own hash may change with its version
        own = keyed.copy()
        own.update(value.encode())
        return own.digest()

    return np.frombuffer(b"".join(map(digest, values)), ">u8") / 2.0**64


def _as_text(values: pl.Series) -> pl.Series:
    """The values as text, each by itself; whole numbers as integers, also 7.0 and the text 7.0.

    A missing value makes floats of a column, and pandas then writes 7.0.
    """
    text = pl.col("x").cast(pl.String)
    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = pl.col("x").cast(pl.Int128, strict=False)  # UInt64's values, too
        same = whole.cast(values.dtype) == pl.col("x")
        text = pl.when(same).then(whole.cast(pl.String)).otherwise(text)
    text = text.str.replace(r"^-?(0)\.0+$|^(-?\d+)\.0+$", "${1}${2}")
    return values.to_frame("x").select(text.alias("x"))["x"]
