"""A model of several labels, from a log to predictions, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

import dlrm_jax
from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor, sigmoid
from dlrm_jax.inference.probabilities import probability_columns
from dlrm_jax.job import FittedModel
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run_data import load_data
from dlrm_jax.training.metrics import METRICS, binary_metrics
from dlrm_jax.training.retention import Retention
from dlrm_jax.training.streamed_measures import StreamedMeasures

CONFIG = Config(
    model="esmm",
    embedding_dim=4,
    top_mlp=(4, 1),
    batch_size=32,
    evaluation_batch_size=64,
    learning_rate=0.1,
    steps=21,
    log_every=1,
    eval_every=8,
    checkpoint_every=8,
    label_weights=(1.0, 0.5),
    best_metric="purchased/auc",
)
LABELS = ("clicked", "purchased")


def frame(count: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 6, (2, count))
    clicked = rng.random(count) < (1 + user) / 8
    purchased = clicked & (rng.random(count) < (1 + item) / 8)
    missing = clicked & (rng.random(count) < 0.6)  # 0 where there was no click
    return pl.DataFrame(
        {
            "user": user,
            "item": item,
            "importance": rng.uniform(0.5, 2, count),
            "clicked": clicked.astype(float),
            "purchased": pl.Series(np.where(missing, np.nan, purchased)).fill_nan(None),
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("labels")
    frame().write_parquet(directory / "log.parquet")
    schema = Schema(LABELS, ("user", "item"), weight="importance")
    options = Options(schema, split="time:0.2,0.2")
    preprocess([directory / "log.parquet"], directory / "out", options)
    return directory / "out"


@pytest.fixture(scope="module")
def fitted(prepared: Path) -> FittedModel:
    return dlrm_jax.fit(CONFIG, prepared, "1x2", workdir=prepared.parent / "run")


def test_metrics_of_each_label(fitted: FittedModel, prepared: Path):
    test = fitted.summary["test"]
    assert {*test} == {*METRICS, "examples", *(f"purchased/{x}" for x in (*METRICS, "examples"))}
    probabilities = fitted.predict("test")
    labels = fitted.data.test.labels
    assert probabilities.shape == labels.shape == (80, 2)
    assert (probabilities[:, 1] < probabilities[:, 0]).all()  # a purchase needs a click
    logits = np.log(probabilities / (1 - probabilities))
    has = ~np.isnan(labels[:, 1])
    assert 0 < has.sum() < 80
    for before, mask, i in (("", slice(None), 0), ("purchased/", has, 1)):
        weights = fitted.data.test.sample_weights
        assert weights is not None
        expected = binary_metrics(logits[mask, i], labels[mask, i], weights[mask])
        found = {name: test[before + name] for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)
    assert test["auc"] > 0.6
    assert fitted.evaluate("test") == test
    run = prepared.parent / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = {x["step"]: x["purchased/auc"] for x in lines if x["split"] == "validation"}
    best = Retention(run / "checkpoints", 2, "purchased/auc").best()
    assert best == fitted.summary["best_step"] == max(validated, key=lambda x: validated[x])


@pytest.mark.thorough
def test_a_resumed_run_is_an_unbroken_one(fitted: FittedModel, prepared: Path, tmp_path: Path):
    changes = {"steps": 10}
    dlrm_jax.fit(dataclasses.replace(CONFIG, **changes), prepared, "1x2", workdir=tmp_path)
    again = dlrm_jax.fit(CONFIG, prepared, "1x2", workdir=tmp_path)
    assert again.summary["resumed_from"] == 10
    assert again.summary["test_of_last"] == fitted.summary["test_of_last"]


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize("program", ["dlrm_jax.cli.predict"], indirect=True)
def test_a_column_of_each_label(
    program: ModuleType,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    run = prepared.parent / "run"
    checkpoint = Retention(run / "checkpoints", 2, "purchased/auc")
    path = checkpoint.path(checkpoint.best() or 0)

    def predict(data: Path, *flags: str) -> pl.DataFrame:
        output = tmp_path / f"{data.stem}.parquet"
        cli_flags.parse(["predict", f"--checkpoint={path}", f"--data={data}", f"--output={output}",
                         "--batch_size=512", *flags])  # fmt: skip
        program.__dict__["start"] = make_mesh
        program.main()
        return pl.read_parquet(output)

    measure = StreamedMeasures.metrics

    def metrics(self: StreamedMeasures) -> dict[str, float | int]:
        assert (tmp_path / "log.parquet").exists(), "no error of metrics loses predictions"
        return measure(self)

    monkeypatch.setattr(StreamedMeasures, "metrics", metrics)
    found = predict(prepared.parent / "log.parquet", "--keys=clicked")
    assert found.columns == ["clicked", "probability_clicked", "probability_purchased"]
    model = Predictor.load(run, batch_size=512)
    assert model.labels == LABELS
    expected = model.predict(frame().select("user", "item"))
    np.testing.assert_array_equal(found.drop("clicked").to_numpy(), expected)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-3:-1]] == ["clicked", "purchased"]
    rows = frame()["purchased"].count()
    others = "the others have no label of 0 or 1, or a weight that is no number of at least 0"
    assert printed[-1] == f"metrics of purchased of {rows} rows: {others}"
    data = load_directory(prepared)
    whole = Split(tuple(day for split in data.splits.values() for day in split.days))
    (part,) = model.of_split(whole, data.labels)
    np.testing.assert_allclose(sigmoid(part.logits), expected, rtol=1e-5)
    np.testing.assert_array_equal(part.labels, frame().select(LABELS).cast(pl.Float32).to_numpy())
    cli_flags.FLAGS.keys = ["probability_clicked"]
    with pytest.raises(UserError, match="'probability_clicked' is the name of the predictions"):
        program.check_keys(probability_columns(LABELS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dcn"}, "model: dcn has one logit, and the data have the labels clicked, "
         "purchased; shared_bottom, mmoe, ple, esmm take several, or train one .*: labels=clicked"),
        ({"label_weights": (1.0, 2.0, 3.0)}, "label_weights: expected a number for each of the "
         "labels clicked, purchased, got 3"),
        ({"best_metric": "bought/auc"}, "best_metric: expected one of auc, .*purchased/auc, "),
        ({"labels": ("clicked",)}, "label_weights: it has no effect with the one label cl"),
        ({"labels": ("purchased", "clicked"), "best_metric": "auc"}, r"train, row \d+ \(from 0\): "
         "expected labels .* got purchased 0, clicked 1, and .* such rows in all"),
        ({"labels": ("sold",)}, "labels: the data have no label 'sold'"),
        ({"labels": ("purchased",), "label_weights": (), "best_metric": "auc"},
         r"train, row \d+ .*: expected label 0 or 1 of purchased, got nan; a model .* prepare the "
         r'log with "label": "purchased" in the schema and --on_bad_line=skip; or train a model'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(prepared: Path, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_data(dataclasses.replace(CONFIG, **changes), prepared)


def test_one_of_the_labels(prepared: Path):
    """Any model trains one label of data that have several."""
    changes = {"model": "logistic_regression", "label_weights": (), "best_metric": "auc"}
    config = dataclasses.replace(CONFIG, **changes, labels=("clicked",))
    one, data = load_data(config, prepared)
    assert one.labels == data.labels == ("clicked",)
    np.testing.assert_array_equal(data.train.labels, load_directory(prepared).train.labels[:, 0])
    both = dataclasses.replace(
        CONFIG,
        model="shared_bottom",
        labels=("purchased", "clicked"),
        best_metric="clicked/auc",
    )
    assert load_data(both, prepared)[1].test.labels_per_example == 2


def test_generated_examples_have_one():
    with pytest.raises(UserError, match="labels: generated examples have one, got clicked"):
        load_data(Config(labels=("clicked",)), None)
    with pytest.raises(UserError, match="label_weights: it has no effect with the one label label"):
        load_data(Config(label_weights=(1.0, 2.0)), None)
