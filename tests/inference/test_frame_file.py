"""Any number of frames become one file with all rows in order, or none."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from full_disk import largest_file

from dlrm_jax.inference import frame_file
from dlrm_jax.inference.frame_file import SUFFIXES, unwritable, write_frames

READ = {".parquet": pl.read_parquet, ".csv": pl.read_csv}


def frames(sizes: tuple[int, ...]) -> Iterator[pl.DataFrame]:
    for number, size in enumerate(sizes):
        rng = np.random.default_rng(number)
        yield pl.DataFrame({"x": rng.random(size), "n": np.full(size, number)})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sizes", [(0,), (1,), (5, 0, 100_000, 7), (3,) * 12], ids=str)
def test_rows_come_back_in_order(
    sizes: tuple[int, ...], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file*.partial"  # no pattern
    monkeypatch.setattr(frame_file, "_BYTES", 1000)
    write_frames(frames(sizes), path, suffix)
    assert list(tmp_path.iterdir()) == [path]
    found, expected = READ[suffix](path), pl.concat(list(frames(sizes)))
    assert found.columns == ["x", "n"]
    for name in found.columns:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_os_error(suffix: str, tmp_path: Path):
    with largest_file(100_000), pytest.raises(OSError, match="File too large"):
        write_frames(frames((10_000, 10_000)), tmp_path / "file", suffix)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_types_that_csv_does_not_have(tmp_path: Path):
    """As polars itself says; those that Parquet has, too."""
    day = datetime.date(2026, 3, 1)
    values = [1, 2.5, "a", True, None, day, datetime.time(1), datetime.timedelta(1), b"a", [1]]
    values += [{"a": 1}, Decimal("1.50"), datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)]
    series = [pl.Series("x", [value]) for value in values]
    series += [pl.Series("x", ["a"], kind) for kind in (pl.Categorical, pl.Enum(["a"]))]
    series += [pl.Series("x", [1], kind) for kind in (pl.Int128, pl.UInt8)]
    for one in series:
        refused = unwritable({"x": one.dtype}, ".csv") == "x"
        assert unwritable({"x": one.dtype}, ".parquet") is None
        try:
            one.to_frame().lazy().sink_csv(tmp_path / "x.csv")
        except pl.exceptions.ComputeError:
            assert refused, one.dtype
        else:
            assert not refused, one.dtype
