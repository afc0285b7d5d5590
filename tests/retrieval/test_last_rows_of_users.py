"""A user's vector is that of its last row of the log, however the rows are split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_run import SCHEMA, SETTINGS, log, trained

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.log_order import log_of
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.retrieval.run import _user_frames
from dlrm_jax.retrieval.task import Task, make_task

NUMBERED = dataclasses.replace(SCHEMA, dense=("price", "row"), dense_transform="none")


def numbered(directory: Path, split: str) -> tuple[Task, dict[str, float]]:
    """The log with the number of each row, and the last one of each user."""
    frame = log().with_columns(row=np.arange(600, dtype=np.float32))
    frame = frame.with_columns(role=pl.Series(["test", "train", "validation"] * 200))
    frame.write_parquet(directory / "log.parquet")
    preprocess([directory / "log.parquet"], directory / "data", Options(NUMBERED, split=split))
    last = frame.group_by("user").agg(pl.col("row").last())
    return make_task(load_directory(directory / "data"), SETTINGS), dict(last.iter_rows())


@pytest.mark.parametrize("split", ["time", "days", "fraction:0.2,0.2", "column=role"])
def test_a_user_is_as_in_its_last_row(split: str, tmp_path: Path):
    task, expected = numbered(tmp_path, split)

    def rows(examples):
        return np.asarray(examples.dense[:, 1:2])

    frames = pl.concat(_user_frames(task, log_of(task.data), rows))
    found = {user: vector[0] for user, vector in frames.select("user", "vector").iter_rows()}
    assert found == expected


def test_a_run_says_that_earlier_data_do_not_tell(tmp_path: Path):
    task, _ = numbered(tmp_path, "column=role")
    (tmp_path / "data" / "day_0_rows.npy").unlink()
    said: list[str] = []
    trained(task, tmp_path / "run", 1, say=said.append)
    assert [x for x in said if "was prepared by an earlier version, which kept the rows of" in x]
