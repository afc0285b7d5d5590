"""A stream whose ids come and go: stopped and resumed, it gives the bits of an unbroken run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import arrays
from stream_log import log, write_schema, write_segments

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.raw_ids import ids_of
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.dynamic_rows import warn_of_few_rows
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.orbax_io import load

SIZES = [150, 40, 130]
BATCH = 16


def config(schema: Schema, **changes: Any) -> Config:
    given = Config(
        table_rows=(60,),
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        batch_size=BATCH,
        log_every=1,
        dynamic_ids=(f"{schema.categorical[1]}=20:evict_share=0.1",),
        **changes,
    )
    return for_schema(given, schema)


@pytest.mark.thorough  # test_id_clock.py and test_journaled_stream.py have harder ones
def test_stopped_and_resumed(tmp_path: Path):
    directory = tmp_path / "segments"
    write_segments(directory, SIZES)
    schema = Schema.from_json(write_schema(tmp_path / "schema.json"))
    learner = make_learner(config(schema), make_mesh("1x2"))

    def train(workdir: Path, steps: int) -> dict[str, Any]:
        return run_stream(
            config(schema, steps=steps),
            schema,
            lambda consumed: Folder(directory, schema, consumed),
            learner,
            StreamOptions(workdir, idle_seconds=0.1, window=80),
        )

    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    last = train(unbroken, 0)["steps"]
    assert last == sum(SIZES) // BATCH
    train(stopped, 7)  # some batches ahead have been translated, or not
    train(stopped, 0)
    assert (stopped / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    found = arrays(stopped, last)
    for name, array in arrays(unbroken, last).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)

    # The map has the ids of the log, as they are in it: another program can read them.
    name = schema.categorical[1]
    path = unbroken / "checkpoints" / f"{last:08d}" / "id_maps"
    keys = load(path, {name: {"keys": np.zeros(20, np.uint64)}}, partial=True)[name]["keys"]
    raw = ids_of(log(sum(SIZES))[name])
    assert len(np.unique(raw)) > 20
    live = np.asarray(keys)[np.asarray(keys) != 0]
    assert set(live.tolist()) <= set(raw.tolist())
    assert set(raw[last * BATCH - BATCH : last * BATCH].tolist()) <= set(live.tolist())


def test_a_batch_of_too_many_ids_ends_the_run_until_there_are_more_rows(tmp_path: Path):
    directory = tmp_path / "segments"
    write_segments(directory, SIZES)
    schema = Schema.from_json(write_schema(tmp_path / "schema.json"))
    said: list[str] = []

    def train(rows: int, steps: int = 0) -> dict[str, Any]:
        given = dataclasses.replace(config(schema, steps=steps), dynamic_ids=(f"item={rows}",))
        return run_stream(
            given,
            schema,
            lambda consumed: Folder(directory, schema, consumed),
            make_learner(given, make_mesh("1x2")),
            StreamOptions(tmp_path / "run", idle_seconds=0.1),
            said.append,
        )

    message = (
        r"the batch of step \d: table item: a batch of 16 ids needs .* with them keeps its ids"
    )
    train(40, steps=2)
    with pytest.raises(UserError, match=message):
        train(9)
    for line in (
        "warning: table item has rows for 8 ids, and a batch may have 16 different ones, ",
        "ids of table item: 9 rows, 40 in checkpoint 00000002; 12 of 20 ids lose their rows",
    ):
        assert any(x.startswith(line) for x in said), line
    assert train(30)["steps"] == sum(SIZES) // BATCH
    assert arrays(tmp_path / "run", sum(SIZES) // BATCH)["/item/table"].shape == (30, 8)


def test_tables_with_rows_for_any_batch_have_no_warning(tmp_path: Path):
    schema = Schema.from_json(write_schema(tmp_path / "schema.json"))
    given = Config(
        table_rows=(60,), embedding_dim=8, bottom_mlp=(8,), batch_size=BATCH,
        dynamic_ids=("item=17", "tags=32"),
    )  # fmt: skip
    maps = id_maps_of(make_learner(for_schema(given, schema), make_mesh("1x1")).collection, 0)
    assert maps
    said: list[str] = []
    warn_of_few_rows(maps, BATCH, said.append)
    assert len(said) == 1  # a row is that of ids without one
    assert said[0].startswith("warning: table tags has rows for 31 ids, and a batch may have 32")
