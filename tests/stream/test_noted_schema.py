"""A checkpoint of an earlier version gets the schema of its stream where no other one comes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stream_log import SCHEMA, write_segments

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.stream.batches import Encoder
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.noted_schema import with_schema
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.retention import metadata_hash

CONFIG = for_schema(
    Config(
        table_rows=(60,),
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        batch_size=16,
        dynamic_ids=("item=40",),
    ),
    SCHEMA,
)


def train(
    tmp_path: Path, config: Config = CONFIG, encoder: Encoder | None = None, journal: float = 0.0
) -> Path:
    """Runs the stream of two batches to its end; returns the metadata of its checkpoint."""
    if not (tmp_path / "segments").exists():
        write_segments(tmp_path / "segments", [40])
    run_stream(
        config,
        SCHEMA,
        lambda consumed: Folder(tmp_path / "segments", SCHEMA, consumed),
        make_learner(config, make_mesh("1x1")),
        StreamOptions(tmp_path / "run", idle_seconds=0.1, window=80, journal_seconds=journal),
        encoder=encoder,
    )
    (checkpoint,) = (x for x in (tmp_path / "run" / "checkpoints").iterdir() if x.name.isdecimal())
    return checkpoint / "metadata.json"


def as_earlier(metadata: Path) -> bytes:
    """Makes a checkpoint one without a schema; returns its metadata as they were."""
    content = metadata.read_bytes()
    fields = json.loads(content)
    del fields["stream"]["schema"]
    metadata.write_text(json.dumps(fields), encoding="utf-8")
    return content


@pytest.mark.parametrize("journal", [pytest.param(0.0, marks=pytest.mark.thorough), 60.0])
def test_a_stream_that_has_ended(journal: float, tmp_path: Path):
    metadata = train(tmp_path)
    expected = as_earlier(metadata)
    with pytest.raises(UserError, match="run the same train command again, which adds it"):
        TrainedModel.read(tmp_path / "run")
    assert train(tmp_path, journal=journal) == metadata
    assert json.loads(metadata.read_bytes()) == json.loads(expected)
    assert TrainedModel.read(tmp_path / "run").id_rows
    noted = metadata.read_bytes()
    train(tmp_path)
    assert metadata.read_bytes() == noted


def test_entries_of_a_journal_stay_those_of_their_checkpoint(tmp_path: Path):
    metadata = train(tmp_path)
    as_earlier(metadata)
    earlier, replay = metadata.read_bytes(), Replay(metadata.parent)
    for name, value in (("number", 1), ("damage", "entry 1 is damaged")):
        applied = Replay(metadata.parent)
        setattr(applied, name, value)
        assert with_schema(applied, SCHEMA) is applied
        assert metadata.read_bytes() == earlier
    found = with_schema(replay, SCHEMA)
    assert found.before == metadata_hash(metadata.parent) != replay.before


def test_a_stream_with_an_encoder_of_its_own_has_none(tmp_path: Path):
    config = for_schema(
        Config(table_rows=(60,), embedding_dim=8, bottom_mlp=(8,), top_mlp=(8, 1), batch_size=16),
        SCHEMA,
    )
    encoder = HashedRows(SCHEMA, config.table_rows)
    content = train(tmp_path, config, encoder).read_bytes()
    assert "schema" not in json.loads(content)["stream"]
    assert train(tmp_path, config, encoder).read_bytes() == content
