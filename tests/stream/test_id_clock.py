"""Ids that lose their rows by the time of events."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from main_job import arrays
from shared_learners import shared_learner
from stream_log import SCHEMA, log, write_segments

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.raw_ids import ids_of
from dlrm_jax.errors import UserError
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.training.orbax_io import load

SIZES = [150, 40, 130]
BATCH = 16
ROWS, AGE = 40, 700
GIVEN = Config(
    table_rows=(60,),
    embedding_dim=8,
    bottom_mlp=(8,),
    top_mlp=(8, 1),
    batch_size=BATCH,
    log_every=1,
    dynamic_ids=(f"item={ROWS}:max_age={AGE}",),
)


def events() -> pl.DataFrame:
    """Rows some of whose times are earlier than those before, and with fractions of seconds."""
    rows = log(sum(SIZES))
    rng = np.random.default_rng(7)
    late = np.where(rng.random(len(rows)) < 0.5, 500, 0)
    late[5 * BATCH : 7 * BATCH] = 5000  # two whole batches
    times = 1.7e9 + 60.0 * np.arange(len(rows)) - late + 0.75
    return rows.with_columns(t=pl.Series(times))


def train(directory: Path, workdir: Path, clock: Any = "seconds", **changes: Any) -> dict[str, Any]:
    schema = changes.pop("schema", SCHEMA)
    config = for_schema(dataclasses.replace(GIVEN, **changes), schema)
    return run_stream(
        config,
        schema,
        lambda consumed: Folder(directory, schema, consumed),
        shared_learner(config, "1x2"),
        StreamOptions(workdir, idle_seconds=0.1, window=80, id_clock=clock),
    )


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("events") / "segments"
    write_segments(directory, SIZES, events())
    return directory


def map_of(workdir: Path, step: int) -> dict[str, np.ndarray]:
    path = workdir / "checkpoints" / f"{step:08d}" / "id_maps"
    wanted = {
        "keys": np.zeros(ROWS, np.uint64),
        "last_seen": np.zeros(ROWS, np.int64),
        "numbers": np.zeros(4, np.int64),
    }
    found = load(path, {"item": wanted}, partial=True)["item"]
    return {name: np.asarray(x) for name, x in found.items()}


@pytest.mark.thorough
def test_stopped_and_resumed(segments: Path, tmp_path: Path):
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    last = train(segments, unbroken)["steps"]
    assert last == sum(SIZES) // BATCH

    # The clock of each batch: the latest time of a row so far, in whole seconds.
    rows = events()[: last * BATCH]
    by_batch = rows["t"].to_numpy().reshape(last, BATCH).max(1)
    clock = np.maximum.accumulate(np.floor(by_batch)).astype(np.int64)
    assert clock[6] == clock[5] == clock[4], "late events don't take it back"
    ids = ids_of(rows["item"]).reshape(last, BATCH)
    found = map_of(unbroken, last)
    assert found["numbers"][0] == clock[-1]
    live = found["keys"] != 0
    seen = dict(zip(found["keys"][live].tolist(), found["last_seen"][live].tolist(), strict=True))
    expected = {key: clock[np.flatnonzero((ids == key).any(1))[-1]] for key in np.unique(ids)}
    assert seen == {key: expected[key] for key in seen}
    recent = {key for key, time in expected.items() if time >= clock[-1] - AGE}
    old = {key for key, time in expected.items() if time < clock[-1] - AGE - AGE // 8 - 16 * 60}
    assert recent <= seen.keys()
    assert old, "the log has ids that were seen long ago"
    assert not old & seen.keys()

    train(segments, stopped, steps=6)  # among the late events
    train(segments, stopped)
    assert (stopped / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    for name, array in arrays(unbroken, last).items():
        np.testing.assert_array_equal(arrays(stopped, last)[name], array, err_msg=name)
    for name, array in map_of(unbroken, last).items():
        np.testing.assert_array_equal(map_of(stopped, last)[name], array, err_msg=name)


def test_a_run_goes_on_with_its_own_clock_alone(segments: Path, tmp_path: Path):
    train(segments, tmp_path, "steps", steps=2)
    with pytest.raises(UserError, match='its id_clock is "steps", this run\'s is "seconds of t"'):
        train(segments, tmp_path, "seconds")
    train(segments, tmp_path, "steps", steps=3)


def test_the_time_of_events_must_be_there(segments: Path, tmp_path: Path):
    timeless = dataclasses.replace(SCHEMA, timestamp=None)
    with pytest.raises(UserError, match="name the column of times as timestamp"):
        train(segments, tmp_path, schema=timeless)
    with pytest.raises(UserError, match="no effect without tables with dynamic ids"):
        train(segments, tmp_path, dynamic_ids=())
