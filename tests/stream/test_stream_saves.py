"""What a run on a stream saves where its source waits, or is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from stream_log import SCHEMA, log, write_segments

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.position import Position
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.stream.source import Segment
from dlrm_jax.training.build import make_learner

CONFIG = for_schema(
    Config(
        table_rows=(60,),
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        batch_size=16,
        log_every=1,
        dynamic_ids=("item=10",),
    ),
    SCHEMA,
)


def train(workdir: Path, source: Any, **options: Any) -> dict[str, Any]:
    learner = make_learner(CONFIG, make_mesh("1x2"))
    chosen = StreamOptions(workdir, **{"idle_seconds": 0.1, "window": 80, **options})
    return run_stream(CONFIG, SCHEMA, source, learner, chosen)


def test_a_batch_of_too_many_ids_ends_the_run_after_the_steps_before_it_are_saved(tmp_path: Path):
    row = pl.int_range(64)
    rows = log(64).with_columns(item=pl.when(row < 48).then(row % 4).otherwise(row))
    write_segments(tmp_path / "segments", [64], rows)
    with pytest.raises(UserError, match="the batch of step 4"):
        train(
            tmp_path / "run",
            lambda consumed: Folder(tmp_path / "segments", SCHEMA, consumed),
            window=16,
        )
    assert (tmp_path / "run/checkpoints/00000003/metadata.json").exists()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2 * 3


def test_a_read_that_blocks_doesnt_keep_states_from_being_saved(tmp_path: Path):
    write_segments(tmp_path / "segments", [50], log(50).with_columns(item=pl.int_range(50) % 4))
    last = tmp_path / "run/checkpoints/00000003/metadata.json"
    found: list[bool] = []

    class Blocking(Folder):
        def next(self, after: Position | None) -> Segment | None:
            if after and not found:
                deadline = time.monotonic() + 30
                while not last.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                found.append(last.exists())
            return super().next(after)

    train(
        tmp_path / "run",
        lambda consumed: Blocking(tmp_path / "segments", SCHEMA, consumed),
        checkpoint_seconds=0.1,
    )
    assert found == [True]
    assert json.loads(last.read_text())["stream"]["examples"] == 48
