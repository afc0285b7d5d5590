"""Logs of requests in Parquet: what is read of them, and what is refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.requests.columns import Columns, read_columns
from dlrm_jax.requests.encoded_log import read_requests

COLUMNS = Columns(
    history=read_columns("history", ["seen:item", "did"]),
    candidates=read_columns("candidates", ["item"]),
    context=read_columns("context", ["country"]),
    history_time="seen_at",
    time="at",
)
ROWS: list[dict[str, Any]] = [
    {
        "seen": [f"i{j}" for j in range(i % 4)],
        "did": ["view"] * (i % 4),
        "seen_at": [100 + j for j in range(i % 4)],
        "item": [f"i{i % 3}", "i9" if i < 15 else "new"],
        "country": "de" if i % 2 else None,
        "label": [i % 2, 0],
        "at": 1000 + i,
    }
    for i in range(20)
]
LOG = pl.DataFrame(ROWS, schema_overrides={"seen": pl.List(pl.String), "did": pl.List(pl.String)})


def written(log: pl.DataFrame, path: Path, parts: int = 1) -> list[Path]:
    paths = [path / f"{part}.parquet" for part in range(parts)]
    size = -(-len(log) // parts)
    for part, file in enumerate(paths):
        log[part * size : (part + 1) * size].write_parquet(file)
    return paths


@pytest.mark.parametrize("parts", [1, 3])
def test_a_log(parts: int, tmp_path: Path):
    paths = written(LOG, tmp_path, parts)
    requests, split, _ = read_requests(paths, COLUMNS, tmp_path / "arrays")
    assert [x.tolist() for x in split] == [[*range(16)], [16, 17], [18, 19]]
    assert requests.lengths.tolist() == [i % 4 for i in range(20)]
    assert requests.counts.tolist() == [2] * 20
    np.testing.assert_array_equal(requests.times, np.arange(1000, 1020))
    assert requests.history_times is not None
    np.testing.assert_array_equal(requests.history_times[:6], [100, 100, 101, 100, 101, 102])
    np.testing.assert_array_equal(requests.labels[:6], [0, 0, 1, 0, 0, 0])
    # Histories and candidates share a table; "new" is there in training once, "zz" never.
    item = {row["item"][0]: requests.candidates["item"][2 * i] for i, row in enumerate(ROWS)}
    assert len(set(item.values())) == 3
    starts = requests.history_offsets[3]
    expected = [item["i0"], item["i1"], item["i2"]]
    np.testing.assert_array_equal(requests.history["seen"][starts : starts + 3], expected)
    assert requests.context["country"][0] != requests.context["country"][1]
    assert requests.rows["item"] == 2 + 5
    assert requests.rows["did"] == 2 + 1
    assert len(requests) == 20

    once, *_ = read_requests(paths, COLUMNS, tmp_path / "other", min_count=2)
    assert once.rows["item"] == 2 + 4
    assert (once.candidates["item"][31::2] == 0).all()  # `UNSEEN`


def test_a_log_of_single_candidates_without_times(tmp_path: Path):
    log = LOG.with_columns(pl.col("item", "label").list.first()).drop("at", "seen_at")
    columns = Columns({"seen": "item"}, {"item": "item"}, {})
    requests, split, _ = read_requests(written(log, tmp_path, 2), columns, tmp_path / "arrays")
    assert requests.counts.tolist() == [1] * 20
    assert requests.times is None
    assert requests.history_times is None
    assert len(split.train) == 16
    np.testing.assert_array_equal(requests.labels, [i % 2 for i in range(20)])


def test_times_may_be_dates(tmp_path: Path):
    start = datetime.datetime(2026, 1, 1)
    dates = [start + datetime.timedelta(seconds=i) for i in range(20)]
    log = LOG.with_columns(
        at=pl.Series(dates), seen_at=pl.col("seen_at").cast(pl.List(pl.Datetime("ms")))
    )
    requests, split, _ = read_requests(written(log, tmp_path), COLUMNS, tmp_path / "arrays")
    assert requests.times is not None
    np.testing.assert_array_equal(np.diff(requests.times), 1)
    assert len(split.train) == 16


def test_arrays_are_read_again_unless_the_log_is_another(tmp_path: Path):
    said, paths = [], written(LOG, tmp_path)
    for _ in range(2):
        read_requests(paths, COLUMNS, tmp_path / "arrays", say=said.append)
    assert len(said) == 1
    written(LOG.head(18), tmp_path)
    requests, *_ = read_requests(paths, COLUMNS, tmp_path / "arrays", say=said.append)
    assert len(said) == 2
    assert len(requests) == 18
    assert len(list((tmp_path / "arrays").glob("*"))) == 2  # a run may read the others


def test_nothing_of_the_users_is_replaced(tmp_path: Path):
    paths = written(LOG, tmp_path)
    read_requests(paths, COLUMNS, tmp_path)
    assert paths[0].exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file"):
        read_requests(paths, COLUMNS, tmp_path / "file")
    with pytest.raises(UserError, match=r"log: .*0\.parquet is there twice"):
        read_requests(paths * 2, COLUMNS, tmp_path)


@pytest.mark.parametrize("name", ["labels", "counts", "history.0", "candidates.0"])
def test_damaged_arrays(name: str, tmp_path: Path):
    paths = written(LOG, tmp_path)
    *_, directory = read_requests(paths, COLUMNS, tmp_path / "arrays")
    file, good = directory / f"{name}.npy", np.load(directory / f"{name}.npy")
    for bad in (good[:-1], good + 99):
        np.save(file, bad, allow_pickle=False)
        with pytest.raises(UserError, match=r"is damaged: .*Delete it: it is made of the log"):
            read_requests(paths, COLUMNS, tmp_path / "arrays")
    file.unlink()
    with pytest.raises(UserError, match=r"is damaged: .*Delete it: it is made of the log"):
        read_requests(paths, COLUMNS, tmp_path / "arrays")


def changed(row: int, **values: Any) -> pl.DataFrame:
    rows = [dict(x) for x in ROWS]
    rows[row].update(values)
    return pl.DataFrame(rows, schema_overrides=LOG.schema)


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (LOG.drop("did"), "0.parquet has no column 'did'; it has seen, seen_at"),
        (
            changed(7, did=["view"]),
            "row 8, column did: expected as many values as seen has, 3, got 1",
        ),
        (changed(7, seen_at=[1, 2]), "row 8, column seen_at: expected as many values as seen"),
        (changed(2, label=[1]), "row 3, column label: expected as many values as item has, 2, got"),
        (changed(2, label=[0, 2]), "row 3, column label: expected 0 or 1, got 2"),
        (changed(7, seen=["a", None, "b"]), "row 8, column seen: expected a value, got None"),
        (changed(4, seen=None), "row 5, column seen: expected a list, got none; give an empty one"),
        (changed(4, item=None), "row 5, column item: expected a list, got none"),
        (changed(4, at=None), "row 5, column at: expected a time, got None"),
        (LOG.with_columns(seen=pl.lit("x")), "column seen: expected lists, got String"),
        (LOG.with_columns(country=pl.col("seen")), "column country: expected single values, got L"),
        (LOG.with_columns(label=pl.lit(1)), "column label: expected lists, got Int32"),
        (
            LOG.with_columns(at=pl.lit("x")),
            "column at: expected dates, or seconds as numbers, got S",
        ),
        (changed(7, seen_at=[1, 2, 2000]), "row 8, column seen_at: expected actions before the"),
        (LOG.with_columns(at=pl.lit(np.nan)), "row 1, column at: expected a time, got nan"),
        (LOG.with_columns(at=pl.lit(1e30)), r"row 1, column at: expected a time, got 1e\+30"),
        (LOG.with_columns(at=pl.lit(1).cast(pl.Duration)), "column at: expected dates, or sec"),
        (changed(7, seen_at=[1, None, 2]), "row 8, column seen_at: expected a value, got None"),
        (LOG.with_columns(did=pl.Series([[["a"]]] * 20)), "column did: expected numbers, te"),
        (LOG.with_columns(seen=pl.lit([1, 2])), "table item: expected columns of one type, got"),
        (LOG.clear(), "expected a log of requests, got one without rows"),
        (LOG.head(1), "expected a log whose times can be cut into eight tenths"),
    ],
)
def test_logs_that_are_refused(log: pl.DataFrame, text: str, tmp_path: Path):
    paths = written(log, tmp_path)
    with pytest.raises(UserError, match=text):
        read_requests(paths, COLUMNS, tmp_path / "arrays")
    assert not list((tmp_path / "arrays").glob("*"))


def test_no_parquet_file(tmp_path: Path):
    (tmp_path / "log.parquet").write_text("seen,did", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read .*log\.parquet"):
        read_requests([tmp_path / "log.parquet"], COLUMNS, tmp_path / "arrays")
    with pytest.raises(UserError, match="expected at least one Parquet file"):
        read_requests([], COLUMNS, tmp_path / "arrays")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"history": {}}, "history: expected at least one column"),
        ({"candidates": {}}, "candidates: expected at least one column"),
        ({"context": {"item": "item"}}, "columns: 'item' is there twice"),
        ({"time": ""}, "time: expected the column of the requests' times beside that of"),
    ],
)
def test_columns_that_are_refused(given: dict, text: str):
    columns = {"history": {"seen": "item"}, "candidates": {"item": "item"}, "context": {}}
    columns |= {"history_time": "seen_at", "time": "at"}
    with pytest.raises(UserError, match=text):
        Columns(**(columns | given))


@pytest.mark.parametrize("item", ["", ":item", "seen:"])
def test_items_that_name_no_column(item: str):
    with pytest.raises(UserError, match="history: expected COLUMN or COLUMN:TABLE"):
        read_columns("history", [item])
    with pytest.raises(UserError, match="history: 'a' is there twice"):
        read_columns("history", ["a:b", "a"])
