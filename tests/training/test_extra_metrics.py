"""Metrics that a config asks for, against plain loops; bad ones are refused early."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_run import CONFIG, examples

from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.auc import grouped_auc
from dlrm_jax.errors import UserError
from dlrm_jax.training.calibration import by_bucket, by_value
from dlrm_jax.training.extra_metrics import extra_metrics, recall_at_precision
from dlrm_jax.training.measures import (
    Measures,
    check_columns,
    check_metrics,
    choosing_metrics,
    measures_of,
)
from dlrm_jax.training.metrics import METRICS, binary_metrics, higher_is_better, score
from dlrm_jax.training.streamed_measures import StreamedMeasures

ROWS = st.lists(
    st.tuples(
        st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]),
        st.booleans(),
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        st.integers(-1, 3),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40)
@given(ROWS, st.sampled_from([0.1, 0.5, 0.75, 1.0]))
def test_recall_at_precision(rows, precision: float):
    z, y, w, _ = map(np.array, zip(*rows, strict=True))
    positive, best = (w * y).sum(), 0.0
    for threshold in z:
        taken, right = w[z >= threshold].sum(), (w * y)[z >= threshold].sum()
        if taken and right / taken >= precision:
            best = max(best, right / positive) if positive else best
    expected = best if positive else math.nan
    found = recall_at_precision(z, y.astype(float), precision, w)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


@settings(max_examples=40)
@given(ROWS, st.integers(1, 4))
def test_calibration_in_parts(rows, buckets: int):
    z, y, w, codes = map(np.array, zip(*rows, strict=True))
    y, codes, p = y.astype(float), codes.astype(np.int64), 1 / (1 + np.exp(-z))

    def error(parts) -> tuple[float, int]:
        known = [part for part in parts if w[part].sum() > 0]
        total = sum(w[part].sum() for part in known)
        off = sum(abs((w * (p - y))[part].sum()) for part in known)
        return (off / total if known else math.nan), len(known)

    by_code = by_value(z, y, w, codes)
    expected, count = error([codes == code for code in range(4)])
    assert by_code.worst_and_mean()[1] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert len(by_code.table()) == count
    assert math.isnan(by_code.worst_and_mean()[0]), "less than 100 examples"

    def bucket(value: float) -> int:
        return min(int(w[z < value].sum() * buckets / max(w.sum(), 1e-300)), buckets - 1)

    of_rows = np.array([bucket(value) for value in z])
    found = by_bucket(z, y, w, buckets)
    expected, count = error([of_rows == number for number in range(buckets)])
    assert found.worst_and_mean()[1] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert len(found.table()) == count
    assert all(row["low"] <= row["prediction"] + 1e-12 for row in found.table())


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch):
    """A module of a user's own functions."""
    module = types.ModuleType("own_metrics")

    def brier(logits, labels, weights):
        return np.average((1 / (1 + np.exp(-logits)) - labels) ** 2, weights=weights)

    module.__dict__.update(brier=brier, text=lambda *_: "x", nan=lambda *_: math.nan, number=1)
    module.__dict__["wrong"] = lambda logits: 1 / 0
    monkeypatch.setitem(sys.modules, "own_metrics", module)


def data_set() -> Dataset:
    rows = examples(200)
    days = []
    for seed, day in enumerate(rows.days):
        rng = np.random.default_rng(seed)
        groups = {"request": rng.integers(-1, 30, len(day))}
        weights = rng.choice([0.5, 2], len(day)).astype("f4")
        days.append(dataclasses.replace(day, groups=groups, sample_weights=weights))
    split = Split(tuple(days))
    return Dataset(split, split, split, CONFIG.table_rows, CONFIG.bag_lengths, "drawn", "drawn")


def test_those_of_a_config(own):
    names = ("gauc:request", "gauc:C2", "calibration_by:C1", "calibration_error:5",
             "recall_at_precision:0.4", "own_metrics:brier:min")  # fmt: skip
    config = dataclasses.replace(CONFIG, metrics=names, best_metric="own_metrics:brier:min")
    data = data_set()
    check_metrics(config)
    check_columns(config, data)
    split, measures = data.test, measures_of(config, data)
    logits = np.random.default_rng(5).normal(size=200).astype(np.float32)
    found = measures(logits, split)
    usual = binary_metrics(logits, split.labels, split.sample_weights)
    assert {name: found[name] for name in usual} == usual
    assert set(found) == {*usual, *names, "calibration_by:C1:worst", "calibration_error:5:worst"}
    weights = split.sample_weights
    assert weights is not None
    first_ids = np.concatenate([np.asarray(day.ids)[:, 1] for day in split.days])
    for name, codes in (("request", split.groups["request"]), ("C2", first_ids)):
        known = codes >= 0
        arrays = (logits, split.labels, codes.astype(np.int64), weights)
        assert found[f"gauc:{name}"] == grouped_auc(*(x[known] for x in arrays))
    probability = 1 / (1 + np.exp(-logits.astype(float)))
    brier = np.average((probability - split.labels) ** 2, weights=split.sample_weights)
    assert found[names[-1]] == pytest.approx(brier)
    assert score(found, names[-1]) == pytest.approx(-brier)
    assert higher_is_better("gauc:C2")
    assert not higher_is_better("calibration_by:C1:worst")
    assert set(measures.tables(logits, split)) == {"calibration_by:C1", "calibration_error:5"}

    streamed = StreamedMeasures((measures.extra, measures.places), 0.0)
    for first in range(0, 200, 60):
        own = split[first : first + 60]
        streamed.add(logits[first : first + 60], own.labels, own)
    assert streamed.metrics() == pytest.approx(found, rel=1e-9, nan_ok=True)


def test_a_label_that_can_not_be_measured_has_all_numbers():
    """No example has the one, and all that have the other have no weight."""
    labels = np.array([[1, np.nan, 1], [0, np.nan, 0], [1, np.nan, np.nan]], np.float32)
    day = Examples(
        np.zeros((3, 0), np.float32),
        np.zeros((3, 3), np.int32),
        labels,
        np.array([0, 0, 1], np.float32),
    )
    metrics = extra_metrics(("gauc:C1", "calibration_by:C1"))
    measures = Measures(metrics, {"C1": 0}, labels=("seen", "absent", "weightless"))
    found = measures(np.zeros((3, 3), np.float32), Split((day,)))
    numbers = {*METRICS, "gauc:C1", "calibration_by:C1", "calibration_by:C1:worst"}
    for label, count in (("absent", 0), ("weightless", 2)):
        of = {name.removeprefix(f"{label}/"): x for name, x in found.items() if label in name}
        assert of.pop("examples") == count
        assert of.keys() == numbers
        assert all(map(math.isnan, of.values()))
    assert found["accuracy"] == 0
    streamed = StreamedMeasures((metrics, {"C1": 0}), 0.0)
    streamed.add(np.zeros(2, np.float32), labels[:2, 2], Split((day[:2],)))
    assert streamed.metrics() == pytest.approx(
        dict.fromkeys(numbers, math.nan) | {"examples": 2}, nan_ok=True
    )


@pytest.mark.parametrize(
    ("name", "is_better"),
    [
        ("calibration_tools:f:max", True),
        ("calibration_ok/auc", True),
        ("calibration_ok/calibration_by:C1:worst", False),
        ("recall@x/log_loss", False),
        ("bought/own:brier:min", False),
        ("gauc:a/log_loss", True),
        ("gauc:C1:min", True),
        ("recall@20", True),
        ("hr@10", True),
        ("mrr", True),
    ],
)
def test_the_better_by_the_name(name: str, is_better: bool):
    assert higher_is_better(name) == is_better


def test_a_function_has_no_worst_part():
    config = dataclasses.replace(CONFIG, metrics=("calibration_tools:f:max", "calibration_by:C1"))
    worst = [name for name in choosing_metrics(config) if name.endswith(":worst")]
    assert worst == ["calibration_by:C1:worst"]


REFUSED = {
    "metrics: expected gauc:COLUMN": {"metrics": ("gauc",)},
    "metrics: recall_at_precision needs a precision above 0": {
        "metrics": ("recall_at_precision:1.5",)},
    "metrics: calibration_error needs a number of buckets": {"metrics": ("calibration_error:x",)},
    "metrics: gauc:C1 is there twice": {"metrics": ("gauc:C1", "gauc:C1")},
    "metrics: can't import 'no_module:f'": {"metrics": ("no_module:f",)},
    "metrics: can't import 'own_metrics:f'": {"metrics": ("own_metrics:f:max",)},
    "to be a function, got 1": {"metrics": ("own_metrics:number",)},
    "own_metrics:text to give a number, got 'x'": {"metrics": ("own_metrics:text",)},
    "own_metrics:nan to give a finite number": {"metrics": ("own_metrics:nan",)},
    "metrics: own_metrics:wrong failed: TypeError": {"metrics": ("own_metrics:wrong",)},
    "best_metric: expected one of auc": {"best_metric": "gauc:C1"},
    "whether more of own_metrics:brier is better isn't known": {
        "metrics": ("own_metrics:brier",), "best_metric": "own_metrics:brier"},
    "metrics: gauc:C9 groups by 'C9', which is neither": {"metrics": ("gauc:C9",)},
    "loss: pairwise:C9 groups by 'C9', which is neither": {"loss": "pairwise:C9"},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str, own):
    config = dataclasses.replace(CONFIG, **REFUSED[message])

    def check() -> None:
        check_metrics(config)
        check_columns(config, data_set())

    with pytest.raises(UserError, match=re.escape(message)):
        check()
