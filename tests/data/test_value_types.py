"""Values of one log in the types of another."""

import math

import polars as pl
import pytest

from dlrm_jax.data.preprocessing.value_types import cast_values, cast_whole
from dlrm_jax.errors import UserError


@pytest.mark.parametrize(
    ("values", "known"), [([1], pl.String()), ([1.0], pl.String()), ([True], pl.Int64())]
)
def test_columns_that_would_mean_something_else(values, known):
    with pytest.raises(UserError, match=f"expected values of type {known}, as in training"):
        cast_values(pl.Series(values), known)


def test_wider_floats_are_the_nearest_values():
    """Python's floats and those of JSON have 64 bits: 0.1 isn't the float32 that shows as 0.1."""
    tenth = pl.Series([0.1], dtype=pl.Float32)[0]
    found = cast_values(pl.Series([tenth, 0.1, 0.5, 1e300, math.inf, None]), pl.Float32())
    assert found.dtype == pl.Float32
    assert found.to_list() == [tenth, tenth, 0.5, None, math.inf, None]
    assert cast_values(pl.Series([2**24, 2**24 + 1]), pl.Float32()).to_list() == [2**24, None]


def test_all_or_an_error():
    values = pl.Series("value", ["7", "1.5"])
    assert cast_whole(values[:1], pl.Int64()).equals(pl.Series("value", [7]), check_names=True)
    with pytest.raises(UserError, match=r"its own type, Int64, got String with '1\.5'"):
        cast_whole(values, pl.Int64())
    with pytest.raises(UserError, match=r"its own type, Float32, got Float64 with 0\.1"):
        cast_whole(pl.Series([0.5, 0.1]), pl.Float32())
