"""Tensors of raw values get the ids that the log's own values have."""

from __future__ import annotations

import datetime
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
    encoder = encoder_of(directory / "out")
    model: Any = ServedModel.__new__(ServedModel)  # without a queue, and a model to answer it
    model.predictor = SimpleNamespace(
        encoder=encoder,
        row_encoder=RowEncoder(encoder),
        scorer=SimpleNamespace(inputs=None),
        vocabularies=directory / "out",
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
    for each in (none, none | {"days": none["day"]}):
        found = rows_of(model, each)
        assert found is not None
        assert len(found) == 0
