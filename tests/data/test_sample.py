from __future__ import annotations

import numpy as np
import pytest
from saved_run import examples

from dlrm_jax.data.sample import evenly_spaced


@pytest.mark.parametrize(
    ("count", "rows"),
    [(1, [0]), (4, [0, 2, 5, 7]), (9, list(range(9))), (10, [*range(10)]), (11, [*range(10)])],
)
def test_rows_are_evenly_spaced_over_all_days(count: int, rows: list[int]):
    split = examples(10)
    found = evenly_spaced(split, count)
    np.testing.assert_array_equal(
        np.concatenate([day.dense for day in found.days]), split.take(np.array(rows)).dense
    )
    assert (found is split) == (count >= 10)


def test_none_is_all():
    split = examples(10)
    assert evenly_spaced(split, 0) is split
