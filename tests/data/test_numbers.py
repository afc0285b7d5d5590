"""Numbers of a log in bins and standardized: fitted on training rows, kept for all others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from served import encode_logs

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing import bins
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.standardization import learn_scales, read_scales
from dlrm_jax.errors import UserError
from dlrm_jax.inference.vocabularies import read_values

SCHEMA = Schema(
    "y",
    ("shop", "age"),
    ("price", "stock", "plain"),
    dense_transform={"price": "standardize", "stock": "log_standardize"},
    bins={"age": 4},
)


def log(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "y": np.arange(rows) % 2,
            "shop": rng.integers(0, 3, rows),
            "age": rng.permutation(rows),
            "price": 1e9 + rng.normal(5, 2, rows),
            "stock": rng.integers(-3, 50, rows),
            "plain": np.arange(rows),  # tells the rows apart
        }
    )
    at = pl.int_range(pl.len())
    gone = [pl.when(at % 10 != 7).then(name).alias(name) for name in ("age", "price", "stock")]
    return frame.with_columns(gone)


def prepared_from(directory: Path, frame: pl.DataFrame, grow: Path | None = None) -> Path:
    frame.write_parquet(directory / "log.parquet")
    options = Options(SCHEMA, split="fraction:0.2,0.1")
    preprocess([directory / "log.parquet"], directory / "out", options, grow=grow)
    return directory / "out"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_from(tmp_path_factory.mktemp("numbers"), log(400, 0))


def arrays(directory: Path, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Dense features and ids of splits."""
    days = [day for name in names for day in getattr(load_directory(directory), name).days]
    return np.concatenate([x.dense for x in days]), np.concatenate([x.ids for x in days])


def by_hand(frame: pl.DataFrame, training: pl.DataFrame) -> np.ndarray:
    """Transformed dense columns, in float64."""
    found = []
    for name, is_log in (("price", False), ("stock", True)):
        x, known = (part[name].cast(pl.Float64).to_numpy() for part in (frame, training))
        if is_log:
            x, known = (np.log1p(np.maximum(numbers, 0)) for numbers in (x, known))
        standardized = (x - np.nanmean(known)) / np.nanstd(known)
        found.append(np.nan_to_num(standardized))
    found.append(np.log1p(frame["plain"].to_numpy()))
    return np.stack(found, axis=1)


def training_rows(prepared: Path) -> pl.DataFrame:
    """The rows of the log that train, found by what isn't transformed by anything fitted."""
    frame = log(400, 0)
    (all_rows,) = encode_logs([prepared.parent / "log.parquet"], prepared)
    trains = {row.tobytes() for row in np.asarray(arrays(prepared, "train")[0])}
    return frame.filter(pl.Series([x.tobytes() in trains for x in np.asarray(all_rows.dense)]))


def test_numbers_are_fitted_on_the_training_rows_alone(prepared: Path):
    training = training_rows(prepared)
    dense, ids = arrays(prepared, "train")
    assert len(training) == len(dense) == pytest.approx(280, abs=40)
    np.testing.assert_allclose(dense, by_hand(training, training), rtol=1e-5, atol=1e-6)
    ages = np.sort(training["age"].drop_nulls().to_numpy())
    edges = [ages[len(ages) * i // 4] for i in (1, 2, 3)]
    expected = [1 if x is None else 2 + sum(x >= edge for edge in edges) for x in training["age"]]
    assert ids[:, 1].tolist() == expected
    sizes = np.bincount(ids[:, 1])
    assert sizes[0] == 0
    assert max(sizes[2:]) - min(sizes[2:]) <= 1
    assert load_directory(prepared).table_rows[1] == 6
    values = read_values(prepared, 1).drop_nulls("value").sort("id")["value"].to_list()
    assert values == [-np.inf, *edges]


def test_predictions_and_data_that_grow_keep_what_was_fitted(prepared: Path, tmp_path: Path):
    new = log(100, 1).with_columns(pl.col("age") - 20)
    grown = prepared_from(tmp_path, new, grow=prepared)
    (served,) = encode_logs([tmp_path / "log.parquet"], prepared)
    expected = by_hand(new, training_rows(prepared))
    np.testing.assert_allclose(served.dense, expected, rtol=1e-5, atol=1e-6)
    assert set(np.asarray(served.ids)[:, 1]) <= {1, 2, 3}  # ages below 80 are in two bins
    dense, ids = arrays(grown, "train", "validation", "test")
    assert sorted(map(tuple, dense.tolist())) == sorted(map(tuple, served.dense.tolist()))
    assert sorted(ids[:, 1].tolist()) == sorted(np.asarray(served.ids)[:, 1].tolist())
    kept = [path / "vocabularies" / "dense.parquet" for path in (prepared, grown)]
    assert pl.read_parquet(kept[0]).equals(pl.read_parquet(kept[1]))
    other = Options(dataclasses.replace(SCHEMA, bins={"age": 5}))
    with pytest.raises(UserError, match=r'grow: expected the bins of .* \{"age": 4\}, got .*5'):
        preprocess([tmp_path / "log.parquet"], tmp_path / "other", other, grow=prepared)


def test_text_is_read_as_numbers_and_a_malformed_one_is_an_error(tmp_path: Path):
    log(40, 0).write_csv(tmp_path / "log.csv")
    options = Options(SCHEMA, split="none")
    preprocess([tmp_path / "log.csv"], tmp_path / "out", options)
    assert load_directory(tmp_path / "out").table_rows[1] == 6
    log(40, 0).cast({"age": pl.String}).with_columns(age=pl.lit("old")).write_csv(
        tmp_path / "bad.csv"
    )
    with pytest.raises(UserError, match=r"row 1, column age: expected a finite number .*'old'"):
        preprocess([tmp_path / "bad.csv"], tmp_path / "bad", options)


@pytest.mark.parametrize("stock", [7.0, 1e9])
def test_a_constant_column_keeps_its_units(
    stock: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The deviation of equal numbers is of the size of rounding, and no unit to measure by."""
    (tmp_path / "vocabularies").mkdir()
    frame = pl.LazyFrame({"d0": np.full(4000, 19.95), "d1": np.full(4000, np.log1p(stock))})
    learn_scales(tmp_path, SCHEMA, [frame], [4000], None)
    later = pl.DataFrame({"d0": [19.95, 24.95], "d1": np.log1p([stock, stock * 2 + 1])})
    expected = [[0, 0], [5, np.log(2)]]
    found = read_scales(tmp_path, SCHEMA).applied(later)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not caplog.messages

    path = tmp_path / "vocabularies" / "dense.parquet"
    kept = pl.read_parquet(path)
    kept.with_columns(deviation=pl.Series([3.6e-15, 0.5])).write_parquet(path)  # as it was once
    found = read_scales(tmp_path, SCHEMA).applied(later)
    np.testing.assert_allclose(found["d0"], [0, 5], atol=1e-5)
    (told,) = caplog.messages
    assert told.startswith(f"{path}: column price has the one number 19.95 in training, and ")


def test_a_frequent_number_and_none_at_all_make_fewer_bins():
    def learned(*numbers: float | None) -> list[tuple[float, int, int]]:
        frame = pl.DataFrame({"value": pl.Series(numbers, dtype=pl.Float64)}).lazy()
        return list(bins.learn([frame], [len(numbers)], 3).iter_rows())

    assert learned(0, 0, 0, 0, 7, 8) == [(-np.inf, 4, 2), (7, 2, 3)]
    assert learned(5, 5) == [(-np.inf, 2, 2)]
    assert learned(None) == [(-np.inf, 0, 2)]
    many = pl.DataFrame({"value": np.arange(1000.0)}).lazy()
    sampled = bins.learn([many], [1000], 2, sample=100)
    assert sampled["value"].to_list() == [-np.inf, 500]
    assert sampled["count"].sum() == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": {"price": 4}}, "bins names 'price', which isn't categorical"),
        ({"bins": {"age": 1}}, "bins: age must be from 2 to 65536, got 1"),
        ({"bins": {"age": 4}, "bag_lengths": {"age": 2}}, "bag_lengths names 'age', too"),
        ({"bins": {"age": 4}, "shared": {"age": "shop"}}, "shared names 'age', too"),
        ({"dense_transform": {"age": "log"}}, "dense_transform names 'age', which isn't dense"),
        ({"dense_transform": {"price": "root"}}, "or an object of them by column, .*got 'root'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SCHEMA, **changes)
