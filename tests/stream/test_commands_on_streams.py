"""What the commands make of a run on a stream of which one table has dynamic ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from in_process import run_command
from page_reader import read
from stream_log import SCHEMA, log, write_segments

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.cli.run_report import write_run_report
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.training.build import make_learner


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stream")
    write_segments(directory / "segments", [160])
    given = Config(
        table_rows=(60,),
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        batch_size=16,
        dynamic_ids=("item=40:evict_share=0.1",),
        learning_rate=0.3,
    )
    config = for_schema(given, SCHEMA)
    run_stream(
        config,
        SCHEMA,
        lambda consumed: Folder(directory / "segments", SCHEMA, consumed),
        make_learner(config, make_mesh("1x1")),
        StreamOptions(directory / "run", idle_seconds=0.1, window=64),
    )
    return directory / "run"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "log.parquet"
    log(200, seed=3).write_parquet(path)
    return path


def test_report(workdir: Path, rows: Path, tmp_path: Path):
    options: dict[str, Any] = {"batch_size": 64, "model": None, "most": 100, "permutations": 1}
    tmp_path.joinpath("page").mkdir()
    page = write_run_report(workdir, None, make_mesh("1x1"), **options, output=tmp_path / "page")
    reader, _ = read(page)
    assert "last window, predicted before it was trained on" in {x[0] for x in reader.rows if x}
    assert "A stream's examples aren't kept" in reader.text
    assert "--data" not in reader.text
    numbers = json.loads(page.with_suffix(".json").read_text())
    (item,) = (x for x in numbers["tables"] if x["table"] == "item")
    assert (item["rows"], numbers["source"]) == (40, "a stream")
    with pytest.raises(UserError, match=r"--data has no effect with .* measures the model on a"):
        write_run_report(workdir, rows, make_mesh("1x1"), **options, output=tmp_path / "page")


def exported(workdir: Path, tmp_path: Path, *flags: str) -> Path:
    output = tmp_path / "artifact"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_command(monkeypatch, "export", "--run", workdir, "--output", output, *flags)
    return output


@pytest.mark.thorough
def test_layers_in_int8_are_calibrated_on_a_log(workdir: Path, rows: Path, tmp_path: Path):
    for flags, message in (
        ((), "--layers: int8 is calibrated on rows of the stream; give some as --data"),
        ((f"--data={rows.parent}",), "expected a raw log, got the directory"),
    ):
        with pytest.raises(UserError, match=message):
            exported(workdir, tmp_path, "--layers=int8", *flags)
    pl.read_parquet(rows).clear().write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"empty.parquet is empty; expected rows"):
        exported(workdir, tmp_path, "--layers=int8", f"--data={tmp_path / 'empty.parquet'}")
    artifact = exported(workdir, tmp_path, "--layers=int8", f"--data={rows}")
    assert {str(x.dtype) for x in Manifest.read(artifact).layers} >= {"int8"}
    found = Predictor.load(artifact).predict(rows)
    np.testing.assert_allclose(found, Predictor.load(workdir).predict(rows), atol=0.02)
    assert np.ptp(found) > 0.1


def test_tables_that_are_hashed_beside_a_dynamic_one(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tables = ("predict", "--checkpoint", workdir, "--tables_output", tmp_path / "t", "--tables")
    with pytest.raises(UserError, match=r"table item of .* export the run: keys/ and tables/"):
        run_command(monkeypatch, *tables, "user,item")
    assert not (tmp_path / "t").exists()
    run_command(monkeypatch, *tables, "user")
    found = pl.read_parquet(tmp_path / "t" / "user.parquet")["vector"].to_numpy()
    stored = np.fromfile(exported(workdir, tmp_path) / "tables" / "user.rows", np.float32)
    np.testing.assert_array_equal(found, stored.reshape(60, 8))


def test_onnx_has_rows_for_ids(
    workdir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for number, model in enumerate((workdir, exported(workdir, tmp_path))):
        output = tmp_path / str(number)
        convert = ("convert", "--checkpoint", model, "--format=onnx", "--output", output)
        capsys.readouterr()
        run_command(monkeypatch, *convert)
        assert "its ids are rows of the tables: what predicts" in capsys.readouterr().out
        ids, item = np.load(output / "golden" / "ids.npy"), np.load(output / "tables" / "item.npy")
        assert (ids.dtype, item.shape) == (np.int32, (40, 8))
        assert -1 <= ids[:, 1].min() < ids[:, 1].max() < 40
