"""What can be done with the model of a stream, and what is refused since its ids are values."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import run_command
from stream_log import SCHEMA, log, write_segments

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.training.build import make_learner

DYNAMIC = "ids of a stream are 64-bit values, .* those of item are dynamic there"


def trained(workdir: Path, *dynamic_ids: str) -> Path:
    """A run on one segment."""
    segments = workdir.with_name("segments")
    write_segments(segments, [64])
    given = Config(
        table_rows=(60,),
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        batch_size=32,
        dynamic_ids=dynamic_ids,
    )
    config = for_schema(given, SCHEMA)
    run_stream(
        config,
        SCHEMA,
        lambda consumed: Folder(segments, SCHEMA, consumed),
        make_learner(config, make_mesh("1x1")),
        StreamOptions(workdir, idle_seconds=0.1),
    )
    return workdir


def test_a_model_with_dynamic_ids_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its rows are those of 64-bit ids; those of 0, 1, … would be defaults."""
    run, raw = trained(tmp_path / "run", "item=40"), tmp_path / "log.parquet"
    log(20).write_parquet(raw)
    with pytest.raises(UserError, match=DYNAMIC):
        Predictor.load(run)
    with pytest.raises(UserError, match=DYNAMIC):
        run_command(monkeypatch, "export", "--run", run, "--output", tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    for command in (["predict", "--output", tmp_path / "p.csv"], ["evaluate"]):
        with pytest.raises(UserError, match=DYNAMIC):
            run_command(monkeypatch, command[0], "--checkpoint", run, "--data", raw, *command[1:])


def test_raw_logs_of_a_stream_without_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, raw = trained(tmp_path / "run"), tmp_path / "log.parquet"
    log(20).write_parquet(raw)
    with pytest.raises(UserError, match="was trained on a stream, whose values are hashed"):
        run_command(
            monkeypatch, "predict", "--checkpoint", run, "--data", raw,
            "--output", tmp_path / "p.csv",
        )  # fmt: skip
    run_command(monkeypatch, "export", "--run", run, "--output", tmp_path / "artifact")
    assert len([*(tmp_path / "artifact" / "tables").iterdir()]) == 3
