"""The numbers of items' values, as clients write them."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from dlrm_jax.sequential.item_values import ItemValues


def test_narrow_floats_are_as_the_log_shows_them():
    items = ItemValues(pl.Series([0.1, 0.5, 3, math.inf], dtype=pl.Float32))
    values = [0.1, float(np.float32(0.1)), np.float32(0.1), 0.2, 0.5, 3, 1e300, math.inf]
    np.testing.assert_array_equal(items.numbers(values), [0, 0, 0, -1, 1, 2, -1, 3])
    assert items.decoded(np.arange(4)) == [0.1, 0.5, 3, math.inf]


def test_wide_floats_are_exact():
    items = ItemValues(pl.Series([0.1]))
    np.testing.assert_array_equal(items.numbers([0.1, float(np.float32(0.1))]), [0, -1])
