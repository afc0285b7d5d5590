"""Criteo's categorical values, which its files have as hexadecimal text."""

from __future__ import annotations

import polars as pl

from dlrm_jax.data.preprocessing import few_rows
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError, shown


def from_hexadecimal(name: str, schema: Schema, frame: pl.DataFrame) -> pl.DataFrame:
    """Criteo's categorical values as numbers, where they are hexadecimal text as in its files.

    Raises:
        UserError: a text has other characters or more than 8 of them; the message names it.
    """
    coded = (pl.String, pl.Categorical, pl.Enum)
    columns = [name for name in schema.categorical if frame[name].dtype in coded]
    # All columns at once: an operation of its own for each is slow for a single row.
    texts = few_rows.select(frame, [pl.col(columns).cast(pl.String)])
    numbers = pl.col(columns).str.to_integer(base=16, dtype=pl.UInt32, strict=False)
    found = few_rows.select(texts, [numbers])
    for text, number in zip(texts, found, strict=True):
        if number.null_count() == text.null_count():
            continue
        wrong = text.is_not_null() & (text != "") & number.is_null()
        if wrong.any():
            row = wrong.arg_max() or 0
            raise UserError(
                f"{name}, row {row}, column {text.name}: expected up to 8 hexadecimal digits or "
                f"nothing, got {shown(text[row])}"
            )
    return few_rows.with_columns(frame, found)
