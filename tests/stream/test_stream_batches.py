from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from stream_log import SCHEMA, log, publish, write_segments

from dlrm_jax.data.batches import own_examples
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.errors import UserError
from dlrm_jax.stream.batches import StreamBatch, stream_batches
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.position import Position, Progress

ENCODER = HashedRows(SCHEMA, [50, 50, 50])


def batches(
    directory: Path, size: int, progress: Progress | None = None, own: slice = slice(None)
) -> list[StreamBatch]:
    progress = progress or Progress()
    folder = Folder(directory, SCHEMA, progress.segments)
    given = stream_batches(folder, SCHEMA, ENCODER, size, progress, own)
    return [*there(given)]


def there(given: Iterator[StreamBatch | float]) -> Iterator[StreamBatch]:
    """The batches that are there before the first wait."""
    for batch in given:
        if not isinstance(batch, StreamBatch):
            return
        yield batch


def columns(given: list[StreamBatch]) -> list[np.ndarray]:
    """All arrays of batches, joined."""
    return [
        np.concatenate(column)
        for column in zip(
            *([*batch.batch[:4], batch.rows.groups["user"]] for batch in given), strict=True
        )
    ]


def test_batches_cross_segments_and_leave_nothing_out(tmp_path: Path):
    rows = log(100)
    write_segments(tmp_path, [7, 1, 30, 3, 59], rows)
    found = batches(tmp_path, 16)
    assert [len(batch.batch.labels) for batch in found] == [16] * 6
    dense, ids, labels, weights, users = columns(found)
    assert labels.tolist() == rows["click"][:96].to_list()
    assert weights.tolist() == rows["w"][:96].to_list()
    np.testing.assert_allclose(dense[:, 0], np.log1p(rows["price"][:96].to_numpy()), rtol=1e-6)
    # A user's row is that of its group, and different tags fill their bags.
    pairs = {*zip(ids[:, 0].tolist(), users.tolist(), strict=True)}
    assert len(pairs) == rows["user"][:96].n_unique()
    lengths = rows["tags"][:96].list.len().clip(upper_bound=2).to_list()
    assert (ids[:, 2:] >= 0).sum(axis=1).tolist() == lengths
    assert found[-1].rows.times[-1] == (1.7e9 + 95) * 1e6


def test_batches_dont_depend_on_how_the_log_is_cut(tmp_path: Path):
    rows = log(100)
    write_segments(tmp_path / "a", [100], rows)
    write_segments(tmp_path / "b", [7, 1, 30, 3, 59], rows)
    one, other = (columns(batches(tmp_path / x, 16)) for x in "ab")
    for expected, found in zip(one, other, strict=True):
        np.testing.assert_array_equal(expected, found)


def test_processes_have_their_own_examples_of_batches_that_are_the_same(tmp_path: Path):
    write_segments(tmp_path, [20, 12, 10])
    whole = batches(tmp_path, 8)
    parts = [batches(tmp_path, 8, own=own_examples(8, i, 2)) for i in range(2)]
    for all_of, *of_each in zip(whole, *parts, strict=True):
        for expected, *found in zip(all_of.batch[:4], *(x.batch[:4] for x in of_each), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)
        for each in of_each:
            assert each.progress == all_of.progress
            assert each.rows.checksum() == all_of.rows.checksum()
    checksums = {x.rows.checksum() for x in whole}
    assert len(checksums) == len(whole)


def test_positions_are_those_of_the_last_row(tmp_path: Path):
    write_segments(tmp_path, [20, 12, 10])
    places = [batch.progress.position for batch in batches(tmp_path, 8)]
    assert places == [
        Position("s000.parquet", 8, ended=False),
        Position("s000.parquet", 16, ended=False),
        Position("s001.parquet", 4, ended=False),
        Position("s001.parquet", 12, ended=True),
        Position("s002.parquet", 8, ended=False),
    ]


def test_every_position_goes_on_with_the_same_batches(tmp_path: Path):
    write_segments(tmp_path, [20, 12, 3, 2, 40])
    whole = batches(tmp_path, 8)
    for done in range(1, len(whole)):
        noted = Progress.from_json(whole[done - 1].progress.to_json())
        assert noted == whole[done - 1].progress
        rest = batches(tmp_path, 8, noted)
        for expected, found in zip(columns(whole[done:]), columns(rest), strict=True):
            np.testing.assert_array_equal(expected, found)
        assert [x.progress for x in rest] == [x.progress for x in whole[done:]]


def test_a_batch_of_weight_0_is_left_out_and_counted(tmp_path: Path):
    row = pl.int_range(pl.len())
    rows = log(40).with_columns(w=pl.when(row.is_between(8, 23)).then(0.0).otherwise("w"))
    write_segments(tmp_path, [20, 20], rows)
    said: list[str] = []
    folder = Folder(tmp_path, SCHEMA)
    given = stream_batches(folder, SCHEMA, ENCODER, 8, Progress(), say=said.append)
    found = [*there(given)]
    assert [batch.progress.examples for batch in found] == [8, 32, 40]
    assert found[1].batch.labels.tolist() == rows["click"][24:32].to_list()
    assert said == [
        "the 8 examples up to s000.parquet, row 16 all have weight 0: left out",
        "the 8 examples up to s001.parquet, row 4 all have weight 0: left out",
    ]
    again = batches(tmp_path, 8, found[0].progress)
    assert [x.progress for x in again] == [x.progress for x in found[1:]]


def test_rows_that_fill_no_batch_wait_for_more(tmp_path: Path):
    rows = log(20)
    write_segments(tmp_path, [13], rows[:13])
    before = batches(tmp_path, 8)
    assert len(before) == 1
    publish(tmp_path, "s001.parquet", rows[13:])
    after = batches(tmp_path, 8, before[0].progress)
    assert after[0].batch.labels.tolist() == rows["click"][8:16].to_list()
    assert after[0].progress.examples == 16


def test_the_seconds_are_given_while_nothing_comes(tmp_path: Path):
    write_segments(tmp_path, [8])
    pauses: list[float] = []
    folder = Folder(tmp_path, SCHEMA)
    given = stream_batches(folder, SCHEMA, ENCODER, 8, Progress(), pause=pauses.append)
    first, *others = itertools.islice(given, 3)
    assert isinstance(first, StreamBatch)
    waits = [x for x in others if isinstance(x, float)]
    assert len(waits) == 2
    assert 0 <= waits[0] <= waits[1] < 60
    publish(tmp_path, "s001.parquet", log(8))
    assert isinstance(next(given), StreamBatch)
    assert len(pauses) == 2


def test_a_null_label_is_named_before_its_segment_is_trained_on(tmp_path: Path):
    rows = log(30).with_columns(click=pl.when(pl.int_range(30) != 25).then("click"))
    write_segments(tmp_path, [10, 20], rows)
    folder = Folder(tmp_path, SCHEMA)
    given = stream_batches(folder, SCHEMA, ENCODER, 5, Progress())
    good = []
    with pytest.raises(UserError, match=r"s001\.parquet, row 16, column click: expected 0 or 1"):
        good.extend(given)
    assert len(good) == 2
