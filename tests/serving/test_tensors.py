"""Tensors of raw values get the ids that the log's own values have."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from served import encoder_of

from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.row_encoder import RowEncoder
from dlrm_jax.serving.open_inference import read_request
from dlrm_jax.serving.served_model import ServedModel
from dlrm_jax.serving.tensors import rows_of

SCHEMA = Schema("y", ("day", "days", "flag", "share", "shares"), (), {"days": 2, "shares": 2})
SHARES = [0.1, 0.2, 0.5, 0.7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)] * 20
    frame = pl.DataFrame(
        {
            "y": [0, 1] * 20,
            "day": days,
            "days": [[x] for x in days],
            "flag": [True, False] * 20,
            "share": SHARES * 10,
            "shares": [[x] for x in SHARES * 10],
        }
    )
    directory = tmp_path_factory.mktemp("tensors")
    frame.write_parquet(directory / "log.parquet")
    preprocess([directory / "log.parquet"], directory / "out", Options(SCHEMA))
    return model_of(directory / "out")


def model_of(directory: Path) -> Any:
    encoder = encoder_of(directory)
    model: Any = ServedModel.__new__(ServedModel)  # without a queue, and a model to answer it
    model.predictor = SimpleNamespace(
        encoder=encoder,
        row_encoder=RowEncoder(encoder),
        takes_raw_rows=True,
        scorer=SimpleNamespace(inputs=None),
        vocabularies=directory,
        features_of=lambda columns: frozenset(columns),
    )
    return model


def ids_of(model: Any, **tensors: np.ndarray) -> list[list[int]]:
    """The ids of two rows, of which the other columns have no value."""
    empty = np.array([["", ""]] * 2, object)
    others = {x: empty if x in SCHEMA.bag_lengths else empty[:, 0] for x in SCHEMA.categorical}
    found = rows_of(model, others | tensors)
    assert found is not None
    return np.asarray(found.examples.ids).tolist()


def expected(model: Any, **columns: list[Any]) -> list[list[int]]:
    """As `ids_of`, of values as a log has them."""
    frame = pl.DataFrame(dict.fromkeys(SCHEMA.categorical, [None] * 2) | columns)
    return np.asarray(model.predictor.encoder.rows(frame, "rows").ids).tolist()


def test_empty_text_is_a_missing_value_of_any_column(model: Any):
    """Whatever the other columns have."""
    assert ids_of(model) == expected(model)
    found = ids_of(model, share=np.array([0.2, np.nan]), flag=np.array([True, False]))
    assert found == expected(model, share=[0.2, None], flag=[True, False])


def test_numbers_of_another_width_are_refused_in_lists_too(model: Any):
    """As 0.1 of 32 bits isn't that of 64 bits, which is in the vocabulary."""
    tensors = {"share": np.array([0.1, 0.5]), "shares": np.array([[0.1, 0.5], [0.2, np.nan]])}
    ids = ids_of(model, **tensors)
    assert ids == expected(model, share=[0.1, 0.5], shares=[[0.1, 0.5], [0.2]])
    for name, array in tensors.items():
        with pytest.raises(UserError, match=f"column {name}: expected .* Float64, .* got Float32"):
            ids_of(model, **{name: array.astype(np.float32)})


def test_no_rows(model: Any):
    """They are refused with a message for the client, so they mustn't fail before."""
    none = {
        x: np.zeros((0, 2) if x in SCHEMA.bag_lengths else 0, object) for x in SCHEMA.categorical
    }
    found = rows_of(model, none)
    assert found is not None
    assert len(found) == 0


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2, 1)])
def test_lists_of_another_shape_are_refused(model: Any, shape: tuple[int, ...]):
    """A list [2] beside columns [1] would else be two rows."""
    tensors = {x: np.array([""], object) for x in SCHEMA.categorical}
    tensors |= {x: np.array([["", ""]], object) for x in SCHEMA.bag_lengths}
    tensors["shares"] = np.full(shape, 0.2)
    message = r"expected a list for each row, \[N, L\], .* got the shape " + re.escape(
        str(list(shape))
    )
    with pytest.raises(UserError, match=f"^input shares: {message}$"):
        rows_of(model, tensors)


def any_rows(_: int) -> None:
    """No limit."""


def test_rows_are_counted_before_they_are_read():
    """And no more values are than the shape has."""

    def few(count: int) -> None:
        if count > 40:
            raise UserError(f"{count} rows")

    def ask(rows: int, texts: bytes) -> None:
        given = {"name": "x", "datatype": "BYTES", "shape": [rows]}
        given["parameters"] = {"binary_data_size": len(texts)}
        head = json.dumps({"inputs": [given]}).encode()
        read_request(head + texts, str(len(head)), few)

    unreadable = b"\1\0\0\0\xff"
    with pytest.raises(UserError, match="41 rows"):
        ask(41, unreadable)
    with pytest.raises(UserError, match="expected 2 texts, got more"):
        ask(2, bytes(12) + unreadable)
    with pytest.raises(UserError, match="expected 2 texts, got 3"):
        ask(2, bytes(12))


def test_null_of_json_ends_lists_of_integers(tmp_path: Path):
    """As missing values do: -1 is a value like any other."""
    schema = Schema("y", ("kind", "seen"), ("price",), {"seen": 3})
    rows = [
        {"y": i % 2, "kind": i % 3 - 1, "seen": [-1, i % 5, 7], "price": 1.0} for i in range(40)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))
    model = model_of(tmp_path / "out")

    def tensor(name: str, kind: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
        return {"name": name, "datatype": kind, "shape": shape, "data": data}

    def ask(*inputs: dict[str, Any]) -> list[list[float]]:
        asked = read_request(json.dumps({"inputs": inputs}).encode(), None, any_rows)
        found = rows_of(model, asked.tensors)
        assert found is not None
        examples = found.examples
        return np.concatenate([np.asarray(examples.ids), examples.dense], axis=1).tolist()

    raw = [
        {"kind": -1, "seen": [3, -1], "price": None},
        {"kind": None, "seen": [], "price": 2.5},
        {"kind": 1, "seen": [None, 7], "price": 1.0},
    ]
    examples = model.predictor.row_encoder.rows(raw)
    expected = np.concatenate([np.asarray(examples.ids), examples.dense], axis=1).tolist()
    kind = tensor("kind", "INT16", [3], [-1, None, 1])
    seen = tensor("seen", "INT64", [3, 3], [[3, -1, None], [None] * 3, [None, 7, None]])
    price = tensor("price", "FP32", [3], [None, 2.5, 1])
    for given in (kind, tensor("kind", "BYTES", [3], ["-1", None, "1"])):
        assert ask(given, seen, price) == expected
    none = tensor("kind", "BOOL", [1], [None]), tensor("seen", "UINT8", [1, 2], [None] * 2)
    missing = model.predictor.row_encoder.rows([{"kind": None, "seen": [], "price": 1}])
    ids = np.asarray(missing.ids).tolist()
    assert [row[:4] for row in ask(*none, price)] == ids * 3
    assert ask(kind, tensor("seen", "INT64", [3, 1], [-1] * 3), price)[0][1] == expected[0][2]
    with pytest.raises(UserError, match="row 0, column seen: expected a list in each row, as in"):
        model.predictor.row_encoder.rows([raw[0] | {"seen": 5}])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("INT64", 2**70),
        ("INT8", 300),
        ("INT8", -129),
        ("UINT64", -1),
        ("FP32", 10**400),
        ("FP64", -(10**400)),
        ("FP32", 1e300),
        ("FP16", 70_000),
        ("FP16", -65_520.0),
    ],
)
def test_numbers_that_a_type_has_not(kind: str, value: float):
    tensor = {"name": "day", "datatype": kind, "shape": [3, 2], "data": [1, 2, 3, None, 5, value]}
    with pytest.raises(UserError) as raised:
        read_request(json.dumps({"inputs": [tensor]}).encode(), None, any_rows)
    start = f"input day, row 2 (from 0): expected {kind} or null, got {str(value)[:90]}"
    assert str(raised.value).startswith(start)


@pytest.mark.parametrize(
    ("kind", "rounded"), [("FP16", 65_519.0), ("FP16", -65_519), ("FP32", 3.40282356e38)]
)
def test_numbers_that_are_rounded_to_the_largest_are_not_blamed(kind: str, rounded: float):
    def read(*data: float | None) -> Any:
        tensor = {"name": "day", "datatype": kind, "shape": [len(data)], "data": data}
        return read_request(json.dumps({"inputs": [tensor]}).encode(), None, any_rows)

    assert np.isfinite(read(rounded).tensors["day"]).all()
    for wrong in (1e39, -(10**400)):
        with pytest.raises(UserError, match=re.escape(f"{kind} or null, got {str(wrong)[:90]}")):
            read(rounded, None, wrong, 1e40)
