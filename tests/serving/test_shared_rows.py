"""What all rows of a request share is sent once, and gives what it would in each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from clients import Client, serving
from in_memory import InMemory
from test_export import config_of

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.export import export
from dlrm_jax.serving.http_messages import Limits
from dlrm_jax.serving.served_model import ServedModel
from dlrm_jax.serving.served_version import ServedVersion

SHARED = {"age": 3, "city": "c3"}
PAGES: list[dict[str, Any]] = [
    {"page": f"p{i}", "word": None if i % 3 else f"w{i}"} for i in range(20)
]
ROWS = [SHARED | row for row in PAGES]


@pytest.fixture(scope="module")
def client(artifact: Path) -> Iterator[Client]:
    with serving(artifact, limits=Limits(body_bytes=200_000)) as client:
        yield client


@pytest.mark.parametrize("model", ["din", pytest.param("dlrm", marks=pytest.mark.thorough)])
def test_predictions_are_equal_to_the_last_bit(model: str, tmp_path: Path):
    config = config_of(model)
    export(InMemory.of(config), tmp_path / "artifact", model, "float32")
    predictor = Predictor.load(tmp_path / "artifact", batch_size=16)
    random = np.random.default_rng(0)
    dense = random.normal(size=(21, config.dense_features)).astype(np.float32)
    lengths = config.table_bag_lengths
    ids = random.integers(-1, min(config.table_rows), (21, sum(lengths))).astype(np.int32)
    ids[:, : sum(lengths[:2])] = ids[0, : sum(lengths[:2])]
    examples = Examples(dense, ids, np.zeros(21, np.float32))
    expected = predictor.predict(examples)
    found = predictor.predict_examples(examples, config.table_names[:2])
    np.testing.assert_array_equal(found, expected)


def test_rows_of_a_predictor(artifact: Path):
    predictor = Predictor.load(artifact, batch_size=16)
    expected = predictor.predict(ROWS)
    np.testing.assert_array_equal(predictor.predict(PAGES, SHARED), expected)
    np.testing.assert_array_equal(predictor.predict([{}] * 3, ROWS[0]), expected[[0] * 3])
    assert predictor.predict([], SHARED).shape == (0,)
    for rows, message in (
        ([PAGES[0], ROWS[0]], "row 1: column 'age' is among the shared ones, too"),
        ([{"page": "p1"}], "row 0: it has no column 'word'"),
        ([{"page": 1, "word": None}], "row 0, column page: expected values of type String"),
        ("log.csv", "expected a list of dicts beside values that all rows share"),
    ):
        with pytest.raises(UserError, match=message):
            predictor.predict(rows, SHARED)


def test_rows_of_a_request(client: Client):
    status, expected = client.predict(ROWS)
    assert status == 200
    found = client.ask("POST", "/predict", {"shared": SHARED, "rows": PAGES})[1]
    assert found == expected
    many = {"shared": SHARED, "rows": PAGES * 30}  # beyond what the event loop reads itself
    status, found, _ = client.ask("POST", "/predict", many)
    np.testing.assert_allclose(found["predictions"], expected["predictions"] * 30, rtol=1e-6)
    lists, objects = list[Any](), dict[str, Any]()
    for _ in range(700):
        lists, objects = [lists], {"": objects}
    for body, message in (
        ({"shared": SHARED, "rows": [ROWS[0]]}, "column 'age' is among the shared ones, too"),
        ({"shared": SHARED, "rows": []}, "expected at least one row"),
        ({"shared": [1], "rows": PAGES}, 'expected {"rows"'),
        ({"shared": SHARED | {"age": "x" * 10_000}, "rows": PAGES}, "row 0, column age: expected"),
        *(
            ({"shared": SHARED | {name: nested}, "rows": PAGES}, f"row 0, column {name}: expected")
            for name in ("age", "city")
            for nested in (lists, objects)
        ),
    ):
        status, found, _ = client.ask("POST", "/predict", body)
        assert (status, message in found["error"]) == (400, True), found
        assert len(found["error"]) < 300


def test_tensors_of_one_row_are_for_all(client: Client):
    def tensor(name: str, datatype: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        data = ["" if row[name] is None else row[name] for row in rows]
        return {"name": name, "datatype": datatype, "shape": [len(rows)], "data": data}

    def ask(shared: list[dict[str, Any]], kind: str = "FP32") -> tuple[int, Any]:
        age = tensor("age", kind, shared)
        own = [tensor(name, "BYTES", ROWS) for name in ("page", "word")]
        inputs = [age, tensor("city", "BYTES", shared), *own]
        return client.ask("POST", "/v2/models/small/infer", {"inputs": inputs})[:2]

    status, expected = ask(ROWS)
    assert status == 200, expected
    assert ask(ROWS[:1]) == (200, expected)
    status, found = ask(ROWS[:2])
    assert status == 400
    assert "expected as many rows of each, or 1, got 2 age" in found["error"]
    status, found = ask([ROWS[0] | {"age": True}], "BOOL")
    assert (status, found["error"]) == (400, "input age: expected numbers, such as FP32, got BOOL")
    status, found = ask([*ROWS[:2], ROWS[2] | {"age": True}])
    assert (status, found["error"]) == (
        400,
        "input age, row 2 (from 0): expected FP32 or null, got True",
    )


@pytest.mark.thorough
def test_versions_answer_with_the_order_of_their_own_labels(tmp_path: Path):
    config = config_of("shared_bottom")
    dense, ids = np.array([[0.5, 1.0, -1.0]], np.float32), np.ones((1, 6), np.int32)
    inputs = [
        {"name": "dense", "datatype": "FP32", "shape": [1, 3], "data": dense.tolist()},
        {"name": "ids", "datatype": "INT32", "shape": [1, 6], "data": ids.tolist()},
    ]
    of_version = {"1": config.labels, "2": config.labels[::-1]}
    for version, labels in of_version.items():
        model = InMemory.of(dataclasses.replace(config, labels=labels))
        export(model, tmp_path / f"{version}.new", "small", "float32")
    (tmp_path / "1.new").rename(tmp_path / "1")
    with serving(tmp_path) as client:

        def check(model: ServedVersion[Any]) -> ServedModel:
            assert isinstance(model, ServedModel)
            _, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": inputs})
            assert found["model_version"] == model.version
            own = model.predictor.predict(Examples(dense, ids, np.zeros(1, np.float32)))[0]
            outputs = [(x["name"], x["data"][0]) for x in found["outputs"]]
            names = [f"probability_{x}" for x in of_version[model.version]]
            assert outputs == list(zip(names, own, strict=True))
            return model

        repository = client.server.repository
        old = check(repository.newest)
        (tmp_path / "2.new").rename(tmp_path / "2")
        assert repository.refresh().loaded == ["2"]
        check(repository.newest)
        assert old.predictor.labels == of_version["1"]  # of an answer that is still to be written


def test_names_of_an_earlier_versions_tables(artifact: Path, tmp_path: Path):
    """They are C1, C2, … in the order of the columns, whatever these are called."""
    columns = ("C2", "C1", "C3")
    rows: list[dict[str, Any]] = [
        {"C2": f"a{i % 5}", "C1": "b1", "C3": f"c{i % 2}", "n": 1.0} for i in range(40)
    ]
    frame = pl.DataFrame([row | {"y": i % 2} for i, row in enumerate(rows)])
    frame.write_parquet(tmp_path / "log.parquet")
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(Schema("y", columns, ("n",))))
    loaded = Predictor.load(artifact, batch_size=16)
    assert loaded.scorer.inputs.columns == ("C1", "C2", "C3")
    fingerprint = Metadata.read(tmp_path / "out").fingerprint
    predictor = dataclasses.replace(loaded, vocabularies=tmp_path / "out", fingerprint=fingerprint)
    expected = predictor.predict(rows[:7])
    own = [{x: y for x, y in row.items() if x != "C1"} for row in rows[:7]]
    np.testing.assert_array_equal(predictor.predict(own, {"C1": "b1"}), expected)
