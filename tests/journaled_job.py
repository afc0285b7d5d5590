"""A run on a stream with a journal, which a test cuts and starts again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from main_job import arrays
from shared_learners import shared_learner
from stream_log import SCHEMA

from dlrm_jax.config import Config
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.position import Consumed
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema

SIZES = [150, 40, 130]
BATCH = 16
STEPS = sum(SIZES) // BATCH
GIVEN = Config(
    table_rows=(60,),
    embedding_dim=8,
    bottom_mlp=(8,),
    top_mlp=(8, 1),
    batch_size=BATCH,
    log_every=1,
    checkpoint_every=0,
    keep_checkpoints=20,
)
CASES = {
    "hashed": dataclasses.replace(GIVEN, placements=("user=row_wise", "tags=column_wise")),
    "dynamic": dataclasses.replace(
        GIVEN,
        optimizer="adam",
        dynamic_ids=("item=20:evict_share=0.1", "user=15:admit_count=2"),
        frozen_tables=("tags",),
    ),
}


class CutError(BaseException):
    """What ends a run at once, as a kill does. After an exception of another kind it is saved."""


def train(case: str, segments: Path, workdir: Path, mesh: str = "1x2", **changes: Any) -> list[str]:
    """Trains with an entry after each step; returns what it said.

    ``cut`` is the segment, by its name, that the run is cut at.
    """
    cut, steps = changes.get("cut"), changes.get("steps", 0)
    given = dataclasses.replace(CASES[case], steps=steps)
    config = for_schema(changes.get("config", given), SCHEMA)
    said: list[str] = []

    class Source(Folder):
        def next(self, after: Any) -> Any:
            found = super().next(after)
            if found is not None and found.note.name == cut:
                raise CutError
            return found

    def opened(consumed: tuple[Consumed, ...]) -> Folder:
        return Source(segments, SCHEMA, consumed)

    options = StreamOptions(
        workdir,
        idle_seconds=0.1,
        checkpoint_seconds=0,
        window=80,
        journal_seconds=changes.get("journal_seconds", 1e-9),
    )
    learner = shared_learner(config, mesh)
    try:
        run_stream(config, SCHEMA, opened, learner, options, said.append)
    except CutError:
        said.append("cut")
    return said


def entries(workdir: Path) -> list[Path]:
    return sorted(workdir.glob("checkpoints/*.journal/*"))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def assert_same(workdir: Path, other: Path, step: int) -> None:
    found, expected = arrays(workdir, step), arrays(other, step)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
