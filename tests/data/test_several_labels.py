"""Logs with several labels, some of which a row may lack."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.cli.data_report import write_report
from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.batches import evaluation_batches
from dlrm_jax.data.check import check_labels
from dlrm_jax.data.chosen_labels import with_labels
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.data.statistics import measure
from dlrm_jax.errors import UserError

SCHEMA = Schema(("clicked", "purchased"), ("user",))
ROWS = 28


def log(**changes) -> pl.DataFrame:
    columns = {
        "clicked": [i % 2 for i in range(ROWS)],
        "purchased": [None if i % 4 == 0 else float(i % 3 == 0) for i in range(ROWS)],
        "user": [f"u{i % 5}" for i in range(ROWS)],
    }
    return pl.DataFrame(columns | changes)


def prepare(directory: Path, frame: pl.DataFrame, **options) -> Path:
    frame.write_parquet(directory / "log.parquet")
    given = Options(SCHEMA, **{"split": "time:0.25,0.25", **options})
    preprocess([directory / "log.parquet"], directory / "out", given)
    return directory / "out"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("labels"), log())


def wanted() -> np.ndarray:
    labels = log().select("clicked", "purchased").cast(pl.Float32)
    return labels.fill_null(float("nan")).to_numpy()


def test_labels_as_arrays(prepared: Path):
    data = load_directory(prepared)
    assert data.labels == ("clicked", "purchased")
    found = np.concatenate([split.labels for split in data.splits.values()])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted())
    assert np.load(prepared / "day_0_labels.npy").shape[1:] == (2,)
    *_, last = evaluation_batches(data.test, 4)
    assert last.labels.shape == (4, 2)  # the padding, too
    check_labels(data.test, "test", labels=data.labels)


def test_new_rows_may_lack_them(prepared: Path):
    encoder = LogEncoder(prepared, load_directory(prepared).fingerprint)
    assert encoder.columns == ["user"]
    labels = encoder.rows(log().select("user", purchased=pl.lit(1)), "rows").labels
    assert labels.shape == (ROWS, 2)
    assert np.isnan(labels).all()  # they aren't read
    (chunk,) = encoder.files([prepared.parent / "log.parquet"])
    np.testing.assert_array_equal(chunk.examples.labels, wanted())


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (8, "clicked", None, "row 9, column clicked: expected 0 or 1, or nothing if there is a "
         r"label in purchased, got no value"),
        (5, "clicked", 2, "row 6, column clicked: expected 0 or 1, or nothing .*, got 2"),
        (5, "purchased", 0.5, r"row 6, column purchased: expected 0, 1 or nothing, got 0\.5"),
    ],
)  # fmt: skip
def test_a_row_has_one_of_them(tmp_path: Path, row: int, column: str, value, message: str):
    values = log()[column].to_list()
    values[row] = value
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, log(**{column: values}))
    skipping = prepare(tmp_path, log(**{column: values}), on_bad_line="skip")
    assert sum(map(len, load_directory(skipping).splits.values())) == ROWS - 1


def test_negatives_of_several_labels_stay(tmp_path: Path):
    with pytest.raises(UserError, match=r"drop_negatives: .* one label, got 0\.9 and clicked, pu"):
        prepare(tmp_path, log(), drop_negatives=0.9, split="fraction:0.1,0.1")


def test_one_in_a_list_is_one():
    assert Schema.from_fields({"label": ["y"], "categorical": ["a"]}) == Schema("y", ("a",))


def test_a_damaged_label_is_named():
    labels = np.array([[0, 1], [np.nan, 3], [np.nan, np.nan]], np.float32)

    def split(rows: list[int]) -> Split:
        some = labels[rows]
        return Split(
            (Examples(np.zeros((len(some), 0), "f4"), np.zeros((len(some), 1), "i4"), some),)
        )

    names = ("clicked", "purchased")
    with pytest.raises(UserError, match=r"row 1 .*label 0 or 1, or none, of purchased, got 3"):
        check_labels(split([0, 1]), "train", labels=names)
    with pytest.raises(UserError, match=r"row 1 .*one of the labels clicked, purchased, got nan"):
        check_labels(split([0, 2]), "train", labels=names)
    labels = np.array([[1, 0], [0, np.nan], [0, 1], [np.nan, 1], [0, 1], [1, 1]], np.float32)
    check_labels(split([*range(6)]), "train", labels=names)
    check_labels(split([0, 3, 5]), "train", labels=names, chained=True)
    broken = r"^train, row 1 .* got clicked 0, purchased 1, and 2 such rows in all"
    with pytest.raises(UserError, match=broken):
        check_labels(split([0, 2, 3, 4]), "train", labels=names, chained=True)
    missing = (
        r"^train, row 1 \(from 0\): expected 0 of purchased, as clicked is 0 and .* got nothing, "
        r"and 2 such rows in all\. Fill in 0 in the log .* or train another model, such as mmoe"
    )
    with pytest.raises(UserError, match=missing):
        check_labels(split([0, 1, 3, 1]), "train", labels=names, chained=True)
    labels = np.array([[0, np.nan, 1]], np.float32)
    with pytest.raises(UserError, match="got label 0 0, label 1 nan, label 2 1, and 1 such rows"):
        check_labels(split([0]), "train", chained=True)
    labels = np.array([[1, np.nan, np.nan], [np.nan, 0, np.nan]], np.float32)
    check_labels(split([0]), "train", chained=True)
    with pytest.raises(UserError, match=r"row 1 .* expected 0 of label 2, as label 1 is 0 and"):
        check_labels(split([0, 1]), "train", chained=True)
    labels = np.array([[0, 1]], np.float32)
    one = split([0])
    data = Dataset(one, one, one, (1,), (1,), "f", "drawn", labels=names)
    assert with_labels(data, ["purchased"]).train.labels.tolist() == [1]
    assert with_labels(data, ["purchased", "clicked"]).test.labels.tolist() == [[1, 0]]
    with pytest.raises(UserError, match="labels: the data have no label 'sold'; they have clicked"):
        with_labels(data, ["sold"])
    with pytest.raises(UserError, match=r"needs 1 labels an example .label., but train has 2"):
        dataclasses.replace(data, labels=("label",))


def test_the_report_has_each_label(prepared: Path, tmp_path: Path):
    statistics = measure(load_directory(prepared), None)
    having = [day.labelled["purchased"] for day in statistics.days]
    assert np.sum(having, axis=0).tolist() == [21, 7]
    write_report(prepared, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "examples that have it" in text
    assert "purchased 1" in text
