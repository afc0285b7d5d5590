"""The model of a stream predicts raw rows as its training would evaluate them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from clients import serving
from in_process import run_command
from stream_log import SCHEMA, log, write_segments

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.key_files import load_keys
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.raw_ids import ABSENT_ID, ids_of
from dlrm_jax.dynamic_ids.key_index import KeyIndex
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.serving.verify import verify
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.rows import rows_of
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import fingerprint, for_schema
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.step import make_predict

DYNAMIC = ("item=21:evict_share=0.1", "tags=6:defaults=2")
# -1 is an id, not an absent one; half of the others were never seen.
ROWS = log(60, seed=3).with_columns(
    user=pl.Series([-1, 2**40, *range(58)]),
    item=pl.Series([None, "new", *(f"item {x}" for x in range(58))]),
)


def trained(workdir: Path, mesh: str = "1x1", dynamic_ids: tuple[str, ...] = ()) -> Config:
    """A run on one segment."""
    segments = workdir.with_name("segments")
    write_segments(segments, [160])
    given = Config(
        table_rows=(60,),
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        batch_size=16,
        dynamic_ids=dynamic_ids,
        learning_rate=0.3,
    )
    config = for_schema(given, SCHEMA)
    run_stream(
        config,
        SCHEMA,
        lambda consumed: Folder(segments, SCHEMA, consumed),
        make_learner(config, make_mesh(mesh)),
        StreamOptions(workdir, idle_seconds=0.1),
    )
    return config


def evaluated(workdir: Path, config: Config, mesh: str) -> np.ndarray:
    """What the training's own evaluation gives for `ROWS`, by the maps of the last step."""
    segments = workdir.with_name("rows")
    write_segments(segments, [len(ROWS)], ROWS)
    segment = Folder(segments, SCHEMA, ()).next(None)
    assert segment
    (rows,) = rows_of(segment, SCHEMA)
    learner = make_learner(config, make_mesh(mesh))
    maps = id_maps_of(learner.collection, config.seed)
    identity = {"data": fingerprint(SCHEMA), **config.identity()}
    checkpoints = Checkpoints(workdir / "checkpoints", identity, keep=1)
    state, _ = checkpoints.restore_latest(learner, maps)
    ids = HashedRows(SCHEMA, config.table_rows)(rows.raw)
    if maps:
        for group in maps._groups:
            for column in group.columns:
                present = rows.raw.present[:, column]
                found = maps.maps[group.tables[0]].find(rows.raw.ids[present, column])
                ids[present, column] = found
    split = Split((Examples(rows.dense, ids, rows.labels),))
    logits = np.concatenate([*predictions(learner, make_predict(learner), state, split, 64)])
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize(
    ("mesh", "dynamic_ids"),
    [
        pytest.param("1x1", (), marks=pytest.mark.thorough),
        pytest.param("1x1", DYNAMIC, marks=pytest.mark.thorough),
        ("2x4", DYNAMIC),
    ],
)
def test_run_and_artifact_predict_what_training_evaluates(
    mesh: str, dynamic_ids: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    config = trained(run, mesh, dynamic_ids)
    expected = evaluated(run, config, mesh)
    assert np.ptp(expected) > 0.05
    near: dict[str, Any] = {"rtol": 0, "atol": 1e-6}
    raw = tmp_path / "log.parquet"
    ROWS.write_parquet(raw)
    np.testing.assert_allclose(Predictor.load(run).predict(ROWS), expected, **near)
    run_command(monkeypatch, "export", "--run", run, "--output", artifact)
    assert verify(artifact).golden
    predictor = Predictor.load(artifact)
    for rows in (ROWS, ROWS.to_dicts(), raw):
        np.testing.assert_allclose(predictor.predict(rows), expected, **near)
    for model in (run, artifact):
        output = tmp_path / f"{model.name}.csv"
        flags = ("--data", raw, "--keys", "user", "--output", output)
        run_command(monkeypatch, "predict", "--checkpoint", model, *flags)
        found = pl.read_csv(output)
        assert found["user"].to_list() == ROWS["user"].to_list()
        np.testing.assert_allclose(found["probability"], expected, **near)
    with serving(artifact) as client:
        given = {"rows": ROWS.drop("click", "w", "t").to_dicts()}
        status, answer, _ = client.ask("POST", "/predict", given)
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected, **near)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stream")
    trained(directory / "run", "1x1", DYNAMIC)
    with pytest.MonkeyPatch.context() as monkeypatch:
        output = directory / "artifact"
        run_command(monkeypatch, "export", "--run", directory / "run", "--output", output)
    return output


def test_the_files_of_keys_are_for_other_programs(exported: Path):
    """A dict of them gives the rows: the manifest says the rest."""
    manifest, artifact = Manifest.read(exported), Artifact.load(exported)
    assert manifest.id_rows
    assert manifest.id_rows.schema == {
        "label": "click", "categorical": ["user", "item", "tags"], "dense": ["price"],
        "bag_lengths": {"tags": 2}, "weight": "w", "timestamp": "t", "groups": ["user"],
    }  # fmt: skip
    (of_item,) = (x for x in manifest.id_rows.maps if x.name == "item")
    keys = np.load(exported / of_item.keys)
    live = np.load(exported / of_item.live)
    assert not live[: of_item.defaults].any()
    row_of = {key: row for row, key in enumerate(keys.tolist()) if live[row]}
    assert len(row_of) == live.sum() > 10
    items = ids_of(ROWS["item"])
    ids = np.full((len(items), 4), np.uint64(ABSENT_ID))
    ids[:, 1] = items
    rows = artifact.rows_of(ids.view(np.int64))
    assert (rows[:, [0, 2, 3]] == -1).all()
    assert rows[:, 1].tolist() == [row_of.get(x, 0) for x in items.tolist()]


def test_ids_over_http(exported: Path):
    """Of 64 bits, as tensors; null is absent."""
    (item,) = ids_of(pl.Series(["item 2"])).tolist()
    with serving(exported) as client:
        inputs = [
            {"name": "dense", "datatype": "FP32", "shape": [2, 1], "data": [0.5, 0.5]},
            {"name": "ids", "datatype": "UINT64", "shape": [2, 4],
             "data": [3, item, None, None, 2**64 - 1, 5, 6, 7]},
        ]  # fmt: skip
        status, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": inputs})
        assert status == 200, found
        rows = [{"price": math_of(0.5), "user": 3, "item": "item 2", "tags": []},
                {"price": math_of(0.5), "user": -1, "item": 5, "tags": [6, 7]}]  # fmt: skip
        expected = Predictor.load(exported).predict(rows)
        np.testing.assert_allclose(found["outputs"][0]["data"], expected, atol=1e-6)
        inputs[1]["datatype"] = "INT32"
        inputs[1]["data"] = [0] * 8
        status, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": inputs})
        assert status == 400
        assert "expected INT64 or UINT64 [N, 4], got int32" in found["error"]


def math_of(feature: float) -> float:
    """The number whose logarithmic transform is a feature."""
    return float(np.expm1(feature))


@pytest.mark.parametrize("damage", ["flipped", "twice"])
def test_damaged_keys_are_found_when_they_are_read(damage: str, exported: Path, tmp_path: Path):
    manifest = Manifest.read(exported)
    assert manifest.id_rows
    note = manifest.id_rows.maps[0]
    keys = load_keys(exported, note)
    if damage == "twice":
        keys.keys[-1], keys.live[-1] = keys.keys[np.flatnonzero(keys.live)[0]], True
        with pytest.raises(UserError, match="both belong to id"):
            KeyIndex(keys, note.defaults, note.seed)
        return
    path = exported / note.keys
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(DamagedArtifactError, match=r"keys/.*: expected the checksum"):
            Artifact.load(exported)
    finally:
        path.write_bytes(content)


def test_an_earlier_reader_refuses_the_format(exported: Path):
    manifest = Manifest.read(exported)
    assert manifest._format == 2
    assert dataclasses.replace(manifest, id_rows=None)._format == 1


def test_ids_that_are_rows_are_refused(exported: Path):
    rows = Examples(
        np.zeros((2, 1), np.float32), np.zeros((2, 4), np.int32), np.zeros(2, np.float32)
    )
    with pytest.raises(UserError, match="expected ids of a stream's values, int64, got int32"):
        Predictor.load(exported).predict(rows)


def test_what_the_commands_say_of_metrics_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    trained(run, "1x1", DYNAMIC)
    export = ("export", "--run", run, "--output", tmp_path / "artifact")
    for flag in ("--data=log.parquet", "--max_auc_loss=0.01"):
        with pytest.raises(UserError, match="has no effect with a model of a stream"):
            run_command(monkeypatch, *export, flag)
    capsys.readouterr()
    run_command(monkeypatch, *export)
    assert "no metrics: a stream has no validation or test; dlrm_jax evaluate" in printed(capsys)
    tables = ("predict", "--checkpoint", run, "--tables_output", tmp_path / "t", "--tables")
    with pytest.raises(UserError, match=r"are dynamic there; export the run: keys/ and tables/"):
        run_command(monkeypatch, *tables, "item")
    assert not (tmp_path / "t").exists()
    (tmp_path / "hashed").mkdir()
    trained(tmp_path / "hashed" / "run", "1x1")
    tables = ("predict", "--checkpoint", tmp_path / "hashed" / "run", *tables[3:])
    run_command(monkeypatch, *tables, "user")
    said = printed(capsys)
    assert "the values of the rows aren't known: ids of a stream are hashed to rows" in said
    assert "--preprocessing" not in said
    assert pl.read_parquet(tmp_path / "t" / "user.parquet").columns == ["id", "vector"]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(capsys.readouterr())
