"""The time of a log some of whose rows are ahead."""

from __future__ import annotations

import polars as pl
import pytest

from dlrm_jax.stream.row_clock import time_of_most, times_ahead

STEADY = list(range(200))


@pytest.mark.parametrize(
    ("times", "limit", "expected"),
    [
        ([], None, 0),
        ([5], None, 5),
        ([5, 900], None, 900),  # of few rows each counts
        ([5, 900], 100, 5),
        ([900], 100, 0),
        (STEADY, None, 199),
        ([9000, *STEADY], None, 199),
        ([9000, 9001, *STEADY], None, 199),
        ([300, 9000, *STEADY], None, 199),
        ([*STEADY, 209], None, 209),  # ahead by less than the window
        ([9000, 9001, 9002, *STEADY], None, 9002),  # 3 of 200 are no exception
        ([*STEADY, 9000, 9001, 9002], 500, 199),
    ],
)
def test_time_is_that_of_most(times: list[int], limit: int | None, expected: int):
    assert time_of_most(pl.Series(times, dtype=pl.Int64), 10, limit) == expected


def test_what_is_ahead_is_told():
    second = 1_000_000
    times = pl.Series([second * x for x in [*range(200), 86_400]])
    assert times_ahead(times[:-1], 10 * second, 10**12) is None
    assert times_ahead(times, 10 * second, 10**12) == (
        "1 of 201 times are ahead of the others, up to 1970-01-01 00:03:19: up to 1970-01-02 "
        "00:00:00. They end no window, and are held until the others get there; see that the "
        "clocks are right"
    )
    assert "2 of 2 times are ahead of this machine's clock" in str(times_ahead(times[-2:], 1, 5))
