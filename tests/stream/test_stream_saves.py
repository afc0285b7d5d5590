"""What a run on a stream saves where its source waits, or is wrong."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from shared_learners import shared_learner
from stream_log import SCHEMA, log, write_segments

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.stream import loop
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.position import Position
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.stream.source import Segment

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


def train(
    workdir: Path,
    source: Any,
    config: Config = CONFIG,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    learner = shared_learner(config, "1x2")
    chosen = StreamOptions(workdir, **{"idle_seconds": 0.1, "window": 80, **options})
    return run_stream(config, SCHEMA, source, learner, chosen, say)


@pytest.mark.thorough
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


def test_a_bug_in_reading_ends_the_run_after_the_steps_before_it_are_saved(tmp_path: Path):
    write_segments(tmp_path / "segments", [50], log(50).with_columns(item=pl.int_range(50) % 4))

    class Broken(Folder):
        def next(self, after: Position | None) -> Segment | None:
            if after:
                raise ZeroDivisionError
            return super().next(after)

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", lambda consumed: Broken(tmp_path / "segments", SCHEMA, consumed))
    assert (tmp_path / "run/checkpoints/00000003/metadata.json").exists()


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


def test_lines_of_a_run_are_about_what_it_has_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(loop, "_SHOWN_EVERY", 0)
    write_segments(tmp_path / "segments", [50], log(50).with_columns(item=pl.int_range(50) % 4))

    def speed() -> float | None:
        summary = train(
            tmp_path / "run",
            lambda consumed: Folder(tmp_path / "segments", SCHEMA, consumed),
            idle_seconds=1,
        )
        return summary["examples_per_second"]

    assert speed()
    assert speed() is None, "the second one has trained nothing"
    shown = [x for x in capsys.readouterr().out.splitlines() if x.startswith("step 3 ")]
    assert len(shown) == 2, "one line of each run, however long it waits"


class Damaged:
    """A run with checkpoints of the steps 5 and 8, and segments of 12 rows."""

    def __init__(self, directory: Path):
        self.segments, self.workdir = directory / "segments", directory / "run"
        write_segments(self.segments, [12] * 12, log(144).with_columns(item=pl.int_range(144) % 4))
        self.go_on(8)
        self.last = self.workdir / "checkpoints/00000008"

    def go_on(self, steps: int = 0) -> list[str]:
        """Trains; gives what was said."""
        config = dataclasses.replace(CONFIG, checkpoint_every=5, steps=steps)
        said: list[str] = []
        train(
            self.workdir,
            lambda consumed: Folder(self.segments, SCHEMA, consumed),
            config,
            said.append,
        )
        return said

    def stream(self, step: int) -> dict[str, Any]:
        path = self.workdir / f"checkpoints/{step:08d}/metadata.json"
        return json.loads(path.read_text())["stream"]


def test_segments_that_a_damaged_checkpoint_had_read_are_missed(tmp_path: Path):
    run = Damaged(tmp_path)
    next(run.last.glob("tables/**/d/*")).unlink()
    paths = sorted(run.segments.iterdir())
    contents = {path: path.read_bytes() for path in paths[:10]}
    for path in contents:
        if path != paths[6]:  # that of the position behind step 5
            path.unlink()
    lost = "3 from s007.parquet to s009.parquet: the run goes on behind s006.parquet, row 8"
    for _ in range(2):  # it is set aside by the first one
        with pytest.raises(UserError, match=lost):
            run.go_on()
    for path in paths[7:10]:
        path.write_bytes(contents[path])
    run.go_on(6)
    noted = run.stream(6)
    assert noted["examples"] == 96
    assert [each["name"] for each in noted["segments"]] == ["s006.parquet", "s007.parquet"]
    paths[9].unlink()
    with pytest.raises(UserError, match=r"1 from s009.parquet to s009.parquet"):
        run.go_on()
    run.last.with_suffix(".damaged").rename(tmp_path / "away")
    run.go_on()
    assert run.stream(8)["examples"] == 128


def test_damaged_metadata_dont_say_what_was_read(tmp_path: Path):
    run = Damaged(tmp_path)
    (run.last / "metadata.json").write_bytes(b"{")
    said = "".join(run.go_on())
    assert "00000008.damaged doesn't say which segments it had read" in said
    assert "none behind s006.parquet, row 8 has left the stream" in said
    assert "warning" not in "".join(run.go_on()[1:]), "step 8 was reached again"
