"""Negatives that preparation leaves out: predictions and metrics are those of all examples."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

import dlrm_jax
from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.config import Config
from dlrm_jax.data.auc import grouped_auc
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.metrics import METRICS, binary_metrics
from dlrm_jax.training.sampling import KEPT_NEGATIVES, correction_of, log_odds_shift, noted_shift

ROWS, RATE = 8000, 0.1
SCHEMA = Schema("click", ("item",), ("price",), weight="w", groups=("request",))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    item = rng.integers(0, 4, ROWS)
    request = np.arange(ROWS) // 4
    frame = pl.DataFrame(
        {
            "click": (rng.random(ROWS) < RATE * (0.4 + 0.4 * item)).astype(np.int64),
            "item": item,
            "price": rng.random(ROWS),
            "w": np.where(item == 0, 2.0, 1.0),
            "request": pl.Series(request).cast(pl.String),
        }
    ).with_columns(request=pl.when(pl.col("request") == "5").then(None).otherwise("request"))
    path = tmp_path_factory.mktemp("sampled") / "log.parquet"
    frame.write_parquet(path)
    return path


@pytest.fixture(scope="module")
def prepared(log: Path) -> Path:
    options = Options(SCHEMA, drop_negatives=0.75, split="fraction:0.3,0.3")
    preprocess([log], log.parent / "arrays", options)
    return log.parent / "arrays"


CONFIG = Config(
    table_rows=(9,), dense_features=1, model="logistic_regression", batch_size=64, epochs=8,
    eval_every=0, checkpoint_every=0, learning_rate=0.05, optimizer="adam",
    metrics=("gauc:request", "calibration_by:item"),
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted(prepared: Path) -> dlrm_jax.job.FittedModel:
    return dlrm_jax.fit(CONFIG, prepared, workdir=prepared.parent / "run")


def test_groups_are_kept_with_the_rows(log: Path, prepared: Path):
    data, metadata = load_directory(prepared), Metadata.read(prepared)
    assert metadata.groups == ["request"]
    assert metadata.kept_negatives == data.kept_negatives == {"train": 0.25}
    codes = np.concatenate([split.groups["request"] for split in data.splits.values()])
    assert (codes == -1).sum() in (3, 4), "the request without a value, but what was left out"
    assert len(np.unique(codes)) == pytest.approx(ROWS // 4, rel=0.05)
    sizes = np.unique(codes[codes >= 0], return_counts=True)[1]
    assert sizes.max() == 4


def test_predictions_and_metrics_are_of_all_examples(fitted, prepared: Path):
    """Of the held-out splits, which have all; and of training, whose negatives count four times."""
    for split in ("train", "validation", "test"):
        found = fitted.summary[split]
        assert found["calibration"] == pytest.approx(1, abs=0.12)
        assert found["calibration_by:item"] < 0.03
        assert 0.9 < found["normalized_entropy"] < 1.01
        assert fitted.evaluate(split)["auc"] == pytest.approx(found["auc"], abs=0.02)
    rows = fitted.data.test
    tables = json.loads((prepared.parent / "run" / "calibration.json").read_text())
    assert tables.keys() == {"train", "validation", "test"}
    table = tables["test"]
    assert sorted(row["code"] for row in table["calibration_by:item"]) == [2, 3, 4, 5]
    p, logits = fitted.predict("test"), np.concatenate(list(fitted.predictor.logits(rows)))
    sampled = 1 / (1 + np.exp(-logits.astype(float)))
    np.testing.assert_allclose(p, sampled / (sampled + (1 - sampled) / 0.25), rtol=1e-12)
    assert np.average(sampled, weights=rows.sample_weights) > 2 * RATE
    plain = binary_metrics(logits, rows.labels, rows.sample_weights)
    assert fitted.summary["test"]["auc"] == plain["auc"], "to the last bit"
    assert plain["log_loss"] > fitted.summary["test"]["log_loss"] + 0.05


def test_a_loaded_model_corrects_as_well(fitted, prepared: Path, log: Path):
    workdir = prepared.parent / "run"
    model = Predictor.load(workdir)
    assert model.shift == math.log(0.25)
    np.testing.assert_allclose(model.predict(log)[:500], fitted.predict(log)[:500], rtol=1e-6)
    (checkpoint,) = (workdir / "checkpoints").glob("0*")
    assert read_metadata(checkpoint)[KEPT_NEGATIVES] == 0.25
    assert noted_shift(CONFIG, {}) == 0, "as earlier versions predicted"


PREDICT = pytest.mark.parametrize("program", ["dlrm_jax.cli.predict"], indirect=True)


def predict(program: ModuleType, prepared: Path, data: Path, *flags: str) -> None:
    (checkpoint,) = (prepared.parent / "run" / "checkpoints").glob("0*")
    given = (f"--data={data}", f"--checkpoint={checkpoint}")
    cli_flags.parse(["predict", *given, *flags])
    program.__dict__["start"] = make_mesh  # without another cache of compiled programs
    program.main()


@PREDICT
def test_predict_weighs_groups_and_corrects(program, fitted, prepared, log, tmp_path, capsys):
    predict(program, prepared, log, f"--output={tmp_path}/p.parquet")
    lines = capsys.readouterr().out.splitlines()
    frame, p = pl.read_parquet(log), fitted.predict(log)
    weights, labels = frame["w"].to_numpy(), frame["click"].to_numpy().astype(float)
    logits = np.log(p / (1 - p)).astype(np.float32)
    expected = binary_metrics(logits, labels, weights)
    known = frame["request"].is_not_null().to_numpy()
    groups = (np.arange(ROWS) // 4)[known]
    gauc = grouped_auc(logits[known], labels[known], groups, weights[known])
    assert "0.25 of the negative training examples were kept" in lines[1]
    assert lines[3].split() == [f"{expected[x]:.5f}" for x in METRICS]
    assert lines[5].split()[0] == f"{gauc:.5f}"
    found = pl.read_parquet(tmp_path / "p.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(found, p, rtol=1e-6)


@PREDICT
def test_predict_without_the_columns(program, fitted, prepared, log, tmp_path, capsys):
    """The metrics of training that need one are left out, and no weight counts."""
    frame, p = pl.read_parquet(log), fitted.predict(log)
    frame.drop("w", "request").write_parquet(tmp_path / "log.parquet")
    predict(program, prepared, tmp_path / "log.parquet", f"--output={tmp_path}/p.csv")
    lines = capsys.readouterr().out.splitlines()
    assert "gauc:request isn't computed: the rows have no column 'request'" in lines[-1]
    logits = np.log(p / (1 - p)).astype(np.float32)
    plain = binary_metrics(logits, frame["click"].to_numpy().astype(float))
    assert lines[3].split() == [f"{plain[x]:.5f}" for x in METRICS]
    frame.drop("click", "request").write_parquet(tmp_path / "log.parquet")
    cli_flags.FLAGS.output = f"{tmp_path}/q.csv"
    program.main()
    assert "isn't computed" not in capsys.readouterr().out


@PREDICT
def test_predict_refuses_what_is_asked_for(program, fitted, prepared, log, tmp_path):
    pl.read_parquet(log).drop("request").write_parquet(tmp_path / "log.parquet")
    flags = (f"--output={tmp_path}/p.csv", "--metrics=gauc:request")
    with pytest.raises(UserError, match="--metrics: gauc:request: the rows have no column"):
        predict(program, prepared, tmp_path / "log.parquet", *flags)


def test_when_nothing_is_corrected():
    assert log_odds_shift(CONFIG, 1.0) == 0
    assert correction_of(CONFIG, 1.0) is None
    for changes, why in (
        ({"class_weights": (4.0, 1.0)}, "class_weights=4,1 change the odds"),
        ({"loss": "focal"}, "loss=focal gives no probabilities"),
    ):
        config = dataclasses.replace(CONFIG, **changes)
        assert log_odds_shift(config, 0.25) == 0
        assert why in (correction_of(config, 0.25) or "")
    assert "predictions and metrics are corrected" in (correction_of(CONFIG, 0.25) or "")
