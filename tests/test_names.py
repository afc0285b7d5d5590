"""A log's columns name tables from the schema to the files, whatever characters they have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from saved_run import CONFIG
from served import encode_logs

import dlrm_jax
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.table_files import write_table
from dlrm_jax.inference.vocabularies import read_values
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.tables import describe

NAMES = ("items", "a/b, c", "ü=x.weight", "C1")
CONFIG_OF_LOG = dataclasses.replace(
    CONFIG, model="din", model_options=("target=a/b, c",), optimizer="adam", learning_rate=0.02,
    placements=("a/b, c=row_wise", "ü=x.weight=replicated"), table_optimizers=("C1=sgd:0.1",),
    batch_size=32, evaluation_batch_size=32, epochs=8, eval_every=0, checkpoint_every=0,
)  # fmt: skip


def log() -> pl.DataFrame:
    """The label says whether the item is among those that were viewed before."""
    rng = np.random.default_rng(0)
    items, histories = rng.integers(0, 6, 700), rng.integers(0, 6, (700, 3))
    return pl.DataFrame(
        {
            "y": (histories == items[:, None]).any(1).astype(np.int64),
            "p": rng.normal(size=(700,)),
            "items": histories.tolist(),
            "a/b, c": items,
            "ü=x.weight": [f"v{i % 3}" for i in range(700)],
            "C1": rng.integers(0, 4, 700),
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("names")
    log().write_parquet(directory / "log.parquet")
    fields = {"label": "y", "categorical": list(NAMES), "dense": ["p"], "bag_lengths": {"items": 3},
              "shared": {"items": "a/b, c"}}  # fmt: skip
    (directory / "schema.json").write_text(json.dumps(fields))
    schema = Schema.from_json(directory / "schema.json")
    preprocess([directory / "log.parquet"], directory / "out", Options(schema))
    return directory / "out"


def test_from_a_log_to_files(prepared: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    model = dlrm_jax.fit(CONFIG_OF_LOG, prepared, workdir=workdir)
    config, learner = model.predictor.config, model.predictor.learner
    assert config.features == NAMES
    assert config.shared_tables == ("items=a/b, c",)
    assert [*learner.collection.tables] == ["a/b, c", "ü=x.weight", "C1"]
    assert describe(config).placements == {"a/b, c": "row_wise", "ü=x.weight": "replicated"}
    assert model.summary["test"]["auc"] > 0.9, "it compares the item with those before"

    (checkpoint,) = (workdir / "checkpoints").iterdir()
    kept, metadata = find_kept(checkpoint), read_metadata(checkpoint)
    assert kept
    (new,) = encode_logs([prepared.with_name("log.parquet")], kept)
    in_time = Split((*model.data.train.days, *model.data.test.days, *model.data.validation.days))
    np.testing.assert_array_equal(model.predict(new), model.predict(in_time))

    for i, table in ((1, "a/b, c"), (2, "ü=x.weight")):
        write_table(checkpoint, metadata, table, read_values(kept, i), tmp_path, "npy")
    values = pl.read_parquet(tmp_path / "a%2Fb, c.values.parquet")
    assert values["meaning"].to_list() == ["unseen", "missing", *["value"] * 6]
    assert sorted(values["value"].drop_nulls()) == list(range(6))
    tables = learner.collection.to_arrays(model.predictor.state.embedding)
    of_items = next(arrays["table"] for table, arrays in tables if table.name == "a/b, c")
    np.testing.assert_array_equal(of_items, np.load(tmp_path / "a%2Fb, c.npy"))


def test_names_that_a_table_cannot_have(tmp_path: Path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"label": "y", "categorical": ["a\tb"]}))
    with pytest.raises(UserError, match=r"^schema: categorical: .* printable .*, got 'a\\tb'"):
        Schema.from_json(path)


def test_arrays_without_names_are_numbered(prepared: Path):
    data = load_directory(prepared)
    assert data.columns == NAMES
    assert dataclasses.replace(data, columns=(), shared={}).columns == ("C1", "C2", "C3", "C4")
