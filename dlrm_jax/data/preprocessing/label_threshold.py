"""Labels that are numbers, such as stars, of which the larger ones count as 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from dlrm_jax.errors import UserError


def thresholds_of(given: Any, labels: Sequence[str]) -> dict[str, float]:
    """The smallest number that counts as 1, by label column.

    Args:
        given: JSON of the schema's ``label_at_least``: an object of numbers by column, or the
            number of the only label.
        labels: names of the columns with labels.

    Raises:
        UserError: it is something else, or names another column.
    """
    if isinstance(given, int | float) and len(labels) == 1:
        given = {labels[0]: given}
    if not isinstance(given, Mapping):
        raise UserError(
            f"schema: label_at_least: expected a number for the only label, or an object of "
            f'numbers by label, such as {{"rating": 4}}, got {given!r}'
        )
    if unknown := given.keys() - set(labels):
        raise UserError(
            f"schema: label_at_least names {min(unknown)!r}, which isn't a label; the label is "
            f"{', '.join(labels)}"
        )
    for name, number in given.items():
        if not _is_finite(number):
            raise UserError(
                f"schema: label_at_least: expected the smallest number of {name} that counts as "
                f"1, such as 4, got {str(number)[:60]}"
            )
    return {name: float(number) for name, number in given.items()}


def _is_finite(number: Any) -> bool:
    try:
        return type(number) in (int, float) and math.isfinite(number)
    except OverflowError:  # an integer that no float can be
        return False


def labels_from(numbers: pl.Expr, threshold: float) -> pl.Expr:
    """1 for numbers from a threshold on and 0 for others; null where it isn't a finite number."""
    return pl.when(numbers.is_finite()).then((numbers >= threshold).cast(pl.Float64))
