"""Raw rows from Python: a list, a frame or a file gets what the command predicts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.rows import as_frame
from dlrm_jax.inference.runs import find_checkpoint

PREVIOUS = Path(__file__).parents[1] / "previous"
RAW = PREVIOUS / "raw.csv"


class Arrow:
    """What gives Arrow data, as a frame of pandas does."""

    def __init__(self, frame: pl.DataFrame):
        self.__arrow_c_stream__ = frame.__arrow_c_stream__


@pytest.fixture(scope="module")
def model() -> Predictor:
    return Predictor.load(PREVIOUS / "run_of_format_3", batch_size=256)


@pytest.fixture(scope="module")
def expected(model: Predictor) -> np.ndarray:
    found = model.predict(RAW)
    np.testing.assert_allclose(
        found, np.load(PREVIOUS / "expected.npz")["probabilities"], rtol=1e-5
    )
    return found


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return pl.read_csv(RAW, schema_overrides={"age": pl.Float64}).drop("click")


def test_a_program_for_each_of_a_few_batch_sizes(
    model: Predictor, expected: np.ndarray, frame: pl.DataFrame
):
    """Equal to the last bit in one program; between programs, sums may have another order."""
    assert model.batch_sizes == (1, 16, 256)
    rows, compiled = frame.to_dicts(), model.compiled._cache_size  # pyright: ignore[reportFunctionMemberAccess]
    assert compiled() == 1
    for given in (rows, frame, Arrow(frame), str(RAW), frame.to_dicts()):
        np.testing.assert_array_equal(model.predict(given), expected)
    assert compiled() == 1
    singly = np.concatenate([model.predict([row]) for row in rows[:5]])
    np.testing.assert_allclose(singly, expected[:5], rtol=1e-6)
    for count in (2, 7, 16, 17, 100):
        np.testing.assert_allclose(model.predict(rows[:count]), expected[:count], rtol=1e-6)
    assert compiled() == 3
    assert model.predict([]).shape == model.predict(frame[:0]).shape == (0,)


def test_batch_sizes_fit_the_mesh(expected: np.ndarray, frame: pl.DataFrame):
    model = Predictor.load(PREVIOUS / "run", "2x2", 8)
    assert model.batch_sizes == (4, 8)
    np.testing.assert_allclose(model.predict(frame[:3]), expected[:3], rtol=1e-6)


ONE = {"age": 3, "page": "p1", "city": "c3", "word": None}
BAD: dict[str, Any] = {
    "row 1: it has no column 'page', only age; a missing value is None, null in JSON": [
        ONE, {"age": 1}],
    "row 1: it has no column 'age', nor any other; a missing value is None, null in JSON": [
        ONE, {}],
    "rows (from 0), row 1, column page: expected the type str as in row 0, got 7 of type int": [
        ONE, ONE | {"page": 7}],
    "rows (from 0), row 1, column age: expected a finite number of float32 or nothing, got 'old'": [
        ONE | {"age": "2"}, ONE | {"age": "old"}],
    "rows (from 0), row 1, column age: expected a number or None, got True; give 1 or 0": [
        ONE, ONE | {"age": np.True_}],
    "row 1, column page: expected values of type String, as in training, got Int64; give": [
        ONE | {"page": None}, ONE | {"page": 7}],
    "has no column 'word' that the schema names": pl.DataFrame(ONE).drop("word"),
    "row 0, column city holds lists: expected one value in each row": [ONE | {"city": ["c3"]}],
    "row 0, column age: expected numbers, got List(": [ONE | {"age": [1]}],
    "row 1, column word: expected plain values": [ONE, ONE | {"word": object()}],
    "row 1, column word: 'utf-8' codec can't encode": [
        ONE | {"word": "a"}, ONE | {"word": "\ud800"}],
    "expected a list of dicts, a frame, the path of a file, or Examples, got dict; put a": ONE,
    "row 0: expected a dict for each row, got 'p1'": ["p1"],
    "cannot read there": Path("there"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_named(model: Predictor, message: str):
    with pytest.raises(UserError) as error:
        model.predict(BAD[message])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_numpy_and_mixed_numbers():
    rows = [
        {"n": np.int64(1), "bag": np.array([1, 2]), "x": 1, "id": 2**63},
        {"n": float("nan"), "bag": (), "x": 2.5, "id": None},
    ]
    found = as_frame(rows, list(rows[0]))
    assert found.rows() == [(1, [1, 2], 1.0, 2**63), (None, [], 2.5, None)]


BIG = 2**53 + 1  # the first whole number that no float is


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([BIG, 7.0, float("nan")], [BIG, 7, None]),
        ([[BIG], [7.0, None], None], [[BIG], [7, None], None]),
        ([2**53, 0.5], [2.0**53, 0.5]),
        ([2**32, -1, 2**64 - 1, None], [2**32, -1, 2**64 - 1, None]),
        ([[1], [-1, 2**64 - 1], []], [[1], [-1, 2**64 - 1], []]),
        ([Decimal("0.5"), Decimal("NaN")], [Decimal("0.5"), None]),
    ],
)
def test_no_row_changes_the_value_of_another(values: list[Any], found: list[Any]):
    assert as_frame([{"id": value} for value in values], ["id"])["id"].to_list() == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([BIG, None, 0.5], f"row 2, column id: expected whole numbers, as row 0 has {BIG}, whi"),
        ([[0.5], [1, -BIG]], f"row 0, column id: expected whole numbers, as row 1 has {-BIG}, wh"),
        ([BIG, 1e300], "row 1, column id: expected whole numbers"),
        ([1, 2**127], f"row 1, column id: expected an integer of 128 bits at most, got {2**127}"),
        ([Decimal(1), Decimal("1e40")], "row 1, column id: expected decimals of 38 digits at mos"),
        ([Decimal("1e20"), Decimal("1e-20")], "row 1, column id: expected decimals of 38 digits"),
        ([[Decimal("-inf")]], "row 0, column id: expected decimals of 38 digits at most"),
    ],
)
def test_numbers_that_no_column_holds_are_named(values: list[Any], message: str):
    with pytest.raises(UserError, match=re.escape(f"rows (from 0), {message}")):
        as_frame([{"id": value} for value in values], ["id"])


@pytest.mark.parametrize("nested", [[[1]], {"x": 1}, [{"x": [1]}]])
def test_values_are_not_nested(nested: Any):
    message = f"rows (from 0), row 1, column id: expected a value or a list of values, got {nested}"
    with pytest.raises(UserError, match=re.escape(message)):
        as_frame([{"id": None}, {"id": nested}], ["id"])


def test_a_dense_feature_takes_any_number():
    for values in ([BIG, 0.5], [2**127, 1], [Decimal("1e20"), Decimal("1e-20")]):
        found = as_frame([{"x": value} for value in values], ["x"], numbers=["x"])
        assert found["x"].to_list() == [float(value) for value in values]
    assert as_frame([{"x": -(10**400)}], ["x"], numbers=["x"])["x"].to_list() == [-math.inf]


def test_a_workdir_is_its_best_checkpoint(tmp_path: Path):
    run = shutil.copytree(PREVIOUS / "run_of_format_3", tmp_path / "run")
    first = run / "checkpoints" / "00000006"
    for step, validation in ((12, {"auc": 0.9}), (18, {"auc": 0.8}), (24, None)):
        metadata = json.loads((first / "metadata.json").read_text())
        metadata |= {"step": step, "validation": validation}
        copy = shutil.copytree(first, first.with_name(f"{step:08d}"))
        (copy / "metadata.json").write_text(json.dumps(metadata))
    assert find_checkpoint(run).name == find_checkpoint(run / "checkpoints").name == "00000012"
    for name in ("00000006", "00000012", "00000018"):
        shutil.rmtree(first.with_name(name))
    latest = first.with_name("00000024")
    assert find_checkpoint(run) == find_checkpoint(latest) == latest
    shutil.rmtree(latest / "dense")
    with pytest.raises(UserError, match="00000024 is damaged"):
        find_checkpoint(run)
    shutil.rmtree(latest)
    with pytest.raises(UserError, match="run has no checkpoint"):
        find_checkpoint(run)


def test_a_model_without_vocabularies(model: Predictor):
    with pytest.raises(UserError, match="raw rows can't be mapped to ids"):
        dataclasses.replace(model, vocabularies=None).predict([ONE])
    with pytest.raises(UserError, match="was replaced by other data"):
        dataclasses.replace(model, fingerprint="another").predict([ONE])
