"""Rows that Python looks up are those of preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.requests import value_ids
from dlrm_jax.requests.value_ids import ValueIds


@pytest.mark.parametrize(
    ("known", "values"),
    [
        (["a", "b", "", "ä"], ["b", "a", "never", "", "ä", "b"]),
        ([5, 0, -3, 2**40], [0, 5, 7, -3, 2**40, 2**62, 0]),
    ],
)
def test_both_ways_give_the_same_rows(
    tmp_path: Path, known: Any, values: Any, monkeypatch: pytest.MonkeyPatch
):
    frame = vocabulary.learn([pl.LazyFrame({"value": known})])
    path = tmp_path / "known.parquet"
    frame.write_parquet(path)
    ids = ValueIds(path)
    expected = vocabulary.encode(pl.Series(values), frame, 1)[:, 0]
    np.testing.assert_array_equal(ids.known(values, False), expected)
    np.testing.assert_array_equal(ids.encode(pl.Series(values)), expected)
    missing = vocabulary.encode(pl.Series([None, values[0]]), frame, 1)[:, 0]
    np.testing.assert_array_equal(ids.known([None, values[0]], True), missing)
    for others in ([None], [True], [1.0], np.asarray(values), "ab", 3):
        assert ids.known(others, False) is None
    monkeypatch.setattr(value_ids, "_MOST", 1)
    assert ValueIds(path).known(values, False) is None
