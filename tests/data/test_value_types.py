"""Values of one log in the types of another."""

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


def test_wider_floats_are_the_values_that_they_equal():
    """Python's floats, as in rows of dicts, have 64 bits."""
    third = pl.Series([1 / 3], dtype=pl.Float32)[0]
    found = cast_values(pl.Series([third, 1 / 3, 0.5, 1e300, None]), pl.Float32())
    assert found.dtype == pl.Float32
    assert found.to_list() == [third, None, 0.5, None, None]


def test_all_or_an_error():
    values = pl.Series("value", ["7", "1.5"])
    assert cast_whole(values[:1], pl.Int64()).equals(pl.Series("value", [7]), check_names=True)
    with pytest.raises(UserError, match=r"its own type, Int64, got String with '1\.5'"):
        cast_whole(values, pl.Int64())
