"""Values of all types that a log may have find their rows when JSON names them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.request_serving.rows_of_log import checked_row, tensors_of
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.encoded_log import read_requests
from dlrm_jax.requests.log_types import as_logged
from dlrm_jax.requests.mapped_log import read_vocabularies
from dlrm_jax.requests.model import learner_for
from dlrm_jax.requests.saved_model import read_model, write_model
from dlrm_jax.requests.scorer import RequestScorer
from dlrm_jax.requests.settings import RequestSettings

NOON = datetime.datetime(2026, 1, 31, 12)
MS, ZONED = pl.Datetime("ms"), pl.Datetime("us", "Europe/Berlin")
DAYS = [NOON + datetime.timedelta(days=i % 3) for i in range(20)]
CONTEXT = {
    "narrow": ([0.1, 0.2, 0.3] * 7, pl.Float32),
    "wide": ([0.1, 0.2, 0.3] * 7, pl.Float64),
    "day": ([x.date() for x in DAYS] + [None], pl.Date),
    "at": ([*DAYS, None], MS),
    "zoned": ([x.replace(tzinfo=datetime.UTC) for x in DAYS] + [None], ZONED),
    "mobile": ([True, False, None] * 7, pl.Boolean),
    "size": ([1, 2, 3] * 7, pl.UInt8),
    "text": (["a", "b", "c"] * 7, pl.String),
}
IN_JSON: dict[str, list[Any]] = {
    "narrow": [0.1, 0.2, 0.3],
    "wide": [0.1, 0.2, 0.3],
    "day": [f"2026-{x}" for x in ("01-31", "02-01", "02-02")],
    "at": [f"2026-{x}T12:00:00" for x in ("01-31", "02-01", "02-02")],
    "zoned": [f"2026-{x}" for x in ("01-31T12:00:00Z", "02-01T13:00:00+01:00", "02-02T12:00Z")],
    "mobile": [True, False, None],
    "size": [1, 2, 3],
    "text": ["a", "b", "c"],
}


def test_a_log_with_columns_of_all_types(tmp_path: Path):
    log = pl.DataFrame(
        {
            "seen": [[0.1, 0.2]] * 21,
            "item": [[0.2, 0.3]] * 21,
            "label": [[0, 1]] * 21,
            **{
                name: pl.Series(values[:21], dtype=kind) for name, (values, kind) in CONTEXT.items()
            },
        },
        schema_overrides={"seen": pl.List(pl.Float32), "item": pl.List(pl.Float32)},
    )
    log.write_parquet(tmp_path / "log.parquet")
    columns = Columns({"seen": "item"}, {"item": "item"}, {name: name for name in CONTEXT})
    encoded = read_requests([tmp_path / "log.parquet"], columns, tmp_path / "arrays")
    requests = encoded.requests
    settings = RequestSettings(encoder="mean", width=4, mlp=(4,), batch_size=8)
    shapes = RequestTraining(requests, np.arange(21), settings, 1).shapes
    learner = learner_for(columns, requests.rows, shapes, settings, as_mesh("1x1"))
    scorer = RequestScorer.of_state(learner, columns, settings, learner.init(0))
    write_model(tmp_path / "model", scorer, read_vocabularies(encoded.directory, columns))
    model = read_model(tmp_path / "model")
    for i in range(3):
        own = {name: values[i] for name, values in IN_JSON.items()}
        found = checked_row(model, {"seen": [0.1, 0.2], "item": [0.2, 0.3], **own})
        for name, ids in found.context.items():
            assert ids[0] == requests.context[name][i], name
        for part, ids in (
            (found.history.ids, requests.history),
            (found.candidates, requests.candidates),
        ):
            for name, of_part in part.items():
                np.testing.assert_array_equal(of_part, ids[name][:2])
    kinds = {x["name"]: x["datatype"] for x in tensors_of(columns, model.datatypes)}
    assert kinds == {
        "seen": "FP32", "item": "FP32", "narrow": "FP32", "wide": "FP64", "day": "BYTES",
        "at": "BYTES", "zoned": "BYTES", "mobile": "BOOL", "size": "INT64", "text": "BYTES",
    }  # fmt: skip
    wrong = {name: values[0] for name, values in IN_JSON.items()} | {"day": "31.01.2026"}
    with pytest.raises(UserError, match=r"context: day: expected dates such as 2026-01-31, as in "):
        checked_row(model, {**wrong, "seen": [], "item": [0.2]})


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        (["x"], pl.Date(), "expected dates such as 2026-01-31, as in the log, got 'x'"),
        (
            ["2026-01-31T12:00:00"],
            pl.Date(),
            "expected dates such as 2026-01-31, as in the log, got",
        ),
        ([20260131], pl.Date(), "expected dates such as 2026-01-31, as in the log, got numbers"),
        (["2026-01-31T12:00:00Z"], MS, "expected times such as 2026-01-31T12:00:00, as in the log"),
        (["2026-01-31T12:00:00"], ZONED, r"expected times such as 2026-01-31T12:00:00\+00:00, as"),
        (["2026-01-31T12:00:00.0001"], MS, r"expected times that Datetime\(.*ms.* holds, .* 12:00"),
        (["2026-01-31T12:00:00.1234567"], pl.Datetime("ns"), "expected times such as"),
        (
            ["9999-01-01"],
            pl.Datetime("ns"),
            r"expected times that .*ns.* holds, as in the log, got 9",
        ),
        (["0001-01-01T00:00+05:00"], ZONED, "expected times such as"),
        ([True], pl.String(), "expected text, as in the log, got booleans"),
        (["a"], pl.Int64(), "expected numbers, as in the log, got text"),
        ([1], pl.Boolean(), "expected booleans, as in the log, got numbers"),
    ],
)
def test_other_values_are_refused(values: Any, kind: Any, text: str):
    with pytest.raises(UserError, match=text):
        as_logged(pl.Series(values), kind)


def test_times_of_python():
    for kind, moment in ((MS, NOON), (ZONED, NOON.replace(tzinfo=datetime.UTC))):
        found = as_logged(pl.Series([moment, None]), kind)
        assert found.dtype == kind
        assert found.to_list() == [moment, None]
    anything = pl.Series([1])
    assert as_logged(anything, pl.Null()) is anything  # training had no value


def test_types_that_requests_cannot_name(tmp_path: Path):
    log = pl.DataFrame({"seen": [[1]], "item": [[1]], "label": [[1]]})
    log = log.with_columns(took=pl.lit(datetime.timedelta(1)), price=pl.lit(1).cast(pl.Decimal(9)))
    log.write_parquet(tmp_path / "log.parquet")
    for name in ("took", "price"):
        columns = Columns({"seen": "item"}, {"item": "item"}, {name: name})
        text = f"column {name}: expected numbers, text, booleans or dates, which requests can name"
        with pytest.raises(UserError, match=text):
            read_requests([tmp_path / "log.parquet"], columns, tmp_path / "arrays")
