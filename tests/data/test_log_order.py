"""The order of the log is known across splits, however they are made."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.data import log_order
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.log_order import Log, log_of
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing import day_arrays, pipeline, sources, staging
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

ROWS = 120
UNTIMED = Schema("y", ("item",), ("row",), dense_transform="none")
TIMED = dataclasses.replace(UNTIMED, timestamp="when")
BY_ROW = ["user=user:0.2,0.3", "fraction:0.2,0.3", "column=role", "rows=FILE"]


@pytest.fixture
def log(tmp_path: Path) -> list[Path]:
    """A log in two files, an hour a row."""
    rng = np.random.default_rng(0)
    start = datetime.datetime(2026, 2, 27, 22, 30)
    roles = rng.choice(["train", "validation", "test"], ROWS)
    frame = pl.DataFrame(
        {
            "y": rng.integers(0, 2, ROWS),
            "item": rng.integers(0, 50, ROWS),
            "row": np.arange(ROWS),
            "when": [start + datetime.timedelta(hours=i) for i in range(ROWS)],
            "user": [i * 7 % 30 for i in range(ROWS)],
            "role": roles,
        }
    )
    (tmp_path / "split.txt").write_text("\n".join(roles) + "\n", encoding="utf-8")
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    frame[:70].write_parquet(paths[0])
    frame[70:].write_parquet(paths[1])
    return paths


def prepared(log: list[Path], split: str, schema: Schema) -> Dataset:
    """The log as data; of the rule ``files``, its second file is for test."""
    output = log[0].parent / "out"
    rule = split.replace("FILE", str(log[0].parent / "split.txt"))
    held_out = log[1:] if split == "files" else []
    preprocess(log[: 2 - len(held_out)], output, Options(schema, split=rule), held_out)
    return load_directory(output)


def in_order(log: Log) -> list[int]:
    """The rows of a log by their numbers."""
    numbers, rows = [], []
    for first, found, examples in log.chunks():
        assert first == len(rows)
        numbers += found.tolist()
        rows += [int(row) for row in examples.dense[:, 0]]
    assert len(set(numbers)) == len(numbers)
    return [rows[i] for i in np.argsort(numbers)]


@pytest.mark.parametrize(
    "schema",
    [TIMED, pytest.param(UNTIMED, marks=pytest.mark.thorough)],
    ids=["timed", "untimed"],
)
@pytest.mark.parametrize("split", ["days", "files", "time", "none", *BY_ROW])
def test_every_split_knows_the_order_of_the_log(log, split, schema, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 16)
    monkeypatch.setattr(day_arrays, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(log_order, "_CHUNK", 11)
    data = prepared(log, split, schema)
    of_log = log_of(data)
    assert of_log.is_ordered
    assert in_order(of_log) == list(range(ROWS))
    # It isn't the order of training, validation and test where another one was kept.
    days = [day for each in data.splits.values() for day in each.days]
    assert (in_order(Log.following(days)) == list(range(ROWS))) == (
        split in ("files", "time", "none")
    )


def test_a_single_file_whose_last_day_is_halved(log):
    preprocess(log[:1], log[0].parent / "out", Options(UNTIMED, split="days"))
    assert in_order(log_of(load_directory(log[0].parent / "out"))) == list(range(70))


def test_data_of_earlier_versions_are_read_as_they_are_stored(log):
    data, directory = prepared(log, "fraction:0.2,0.3", UNTIMED), log[0].parent / "out"
    for path in directory.glob("day_*_rows.npy"):
        path.unlink()
    found = log_of(data)
    assert not found.is_ordered
    stored = Metadata.read(directory).splits
    rows = [*zip(stored["train"], stored["validation"], stored["test"], strict=True)]
    assert len(rows) == 2  # a day is a file
    assert in_order(found) == [int(x) for day in found.rows.days for x in day.dense[:, 0]]
    assert sorted(in_order(found)[:70]) == list(range(70))


def test_numbers_of_other_rows_are_refused(log):
    data = prepared(log, "fraction:0.2,0.3", UNTIMED)
    path = log[0].parent / "out" / "day_1_rows.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(UserError, match=r"day_1_rows.npy can't be read \(expected int64 \[50\], g"):
        log_of(data)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"day_1_rows.npy can't be read"):
        log_of(data)


def test_work_that_an_earlier_version_began_is_done_again(log, monkeypatch):
    """Its rows have no numbers."""
    parts = staging._parts

    def without_numbers(frame: pl.DataFrame, first: int) -> list[pl.DataFrame]:
        return [part.drop("row") for part in parts(frame, first)]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_parts", without_numbers)
        patch.setattr(staging, "_rows", lambda chunks, _=False: rows_in(chunks))
        patch.setattr(pipeline, "make_days", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(log, "fraction:0.2,0.3", UNTIMED)
    assert in_order(log_of(prepared(log, "fraction:0.2,0.3", UNTIMED))) == list(range(ROWS))


def rows_in(chunks: list[Path]) -> int:
    return pl.scan_ipc(chunks, glob=False).select(pl.len()).collect().item()


def test_without_a_directory_splits_follow_each_other(log):
    data = dataclasses.replace(prepared(log, "time", UNTIMED), directory=None)
    assert in_order(log_of(data)) == list(range(ROWS))
    empty = dataclasses.replace(data, validation=Split((data.validation.days[0][:0],)))
    assert in_order(log_of(empty)) == [*range(96), *range(108, ROWS)]
