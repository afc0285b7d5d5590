"""What comes from outside is a series of single values, or is refused at once."""

from __future__ import annotations

import datetime
import functools
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrm_jax.sequential.single_values import as_series

DEEP: Any = functools.reduce(lambda inner, _: [inner], range(500), [])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], pl.Int64),
        ([1, 0.5], pl.Float64),
        (["a"], pl.String),
        (np.asarray([1.5]), pl.Float64),
        ([datetime.date(2026, 1, 1)], pl.Date),
        ([], pl.Null),
    ],
)
def test_single_values(values: Any, kind: Any):
    found = as_series(values)
    assert found is not None
    assert found.dtype == kind
    assert len(found) == len(values)


@pytest.mark.parametrize(
    "values",
    [DEEP, (DEEP,), ["a", {"x": DEEP}], [[1]], [np.asarray([1])], np.asarray([[1]]), ["a", 1],
     [2**200], [2**60 + 1, 0.5], "ab", 3, None, [object()]],
)  # fmt: skip
def test_other_values(values: Any):
    assert as_series(values) is None
