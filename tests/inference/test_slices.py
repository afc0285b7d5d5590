"""Metrics of parts of the rows, against scikit-learn and by hand."""

from __future__ import annotations

import dataclasses
from unittest.mock import Mock

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from dlrm_jax.data.arrays import ABSENT, Examples, Split
from dlrm_jax.inference.predictor import Predictor, sigmoid
from dlrm_jax.inference.scored_rows import ScoredRows, score
from dlrm_jax.inference.slices import by_day, by_range, by_value, calibration_error, reliability
from dlrm_jax.training.measures import Measures


def rows(count: int = 400) -> ScoredRows:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1, count).astype(np.float32)
    labels = (rng.random(count) < sigmoid(logits)).astype(np.float32)
    ids = rng.integers(ABSENT, 4, (count, 3)).astype(np.int32)
    dense = rng.integers(0, 3, (count, 1)).astype(np.float32)
    days = np.arange(count) // (count // 4)
    weights = np.ones(count, np.float32)
    return ScoredRows("test", count, Examples(dense, ids, labels), days, labels, logits, weights)


def test_buckets_are_those_of_scikit_learn():
    found = rows()
    buckets = reliability(found, 10)
    rate, predicted = calibration_curve(
        found.labels, sigmoid(found.logits), n_bins=10, strategy="quantile"
    )
    np.testing.assert_allclose([x.label_rate for x in buckets], rate)
    np.testing.assert_allclose([x.prediction for x in buckets], predicted)
    assert all(0 <= x.low <= x.label_rate < x.high <= 1 for x in buckets)
    expected = np.abs(rate - predicted).mean()
    assert calibration_error(buckets) == pytest.approx(expected)
    # Wilson's interval of no positive in ten: 0 to 0.2775.
    none = dataclasses.replace(found[:10], labels=np.zeros(10, np.float32))
    (bucket,) = reliability(none, 1)
    assert (bucket.low, bucket.high) == pytest.approx((0, 0.2775), abs=1e-4)


def test_values_that_most_rows_have():
    found = rows()
    slices = list(by_value(found, ("a", "b"), (1, 2), 3))
    assert [each.feature for each in slices] == ["a"] * 3 + ["b"] * 3
    ids, labels = np.asarray(found.examples.ids), found.labels
    for each in slices:
        bags = ids[:, :1] if each.feature == "a" else ids[:, 1:]
        chosen = [each.value in bag for bag in bags]  # a bag that has it twice is one row
        assert each.value != ABSENT
        assert each.metrics["examples"] == sum(chosen)
        assert each.metrics["auc"] == pytest.approx(
            roc_auc_score(labels[chosen], found.logits[chosen])
        )
        assert each.metrics["label_rate"] == pytest.approx(labels[chosen].mean())
    probabilities = sigmoid(found.logits)
    whole = found.metrics()
    spread = np.sqrt(np.sum(probabilities * (1 - probabilities)))
    assert whole["deviation"] == pytest.approx((labels.sum() - probabilities.sum()) / spread)


def test_equal_values_lie_in_one_range():
    found = rows()
    slices = list(by_range(found, ("price",), 4))  # of three values
    assert [each.value for each in slices] == [(0, 0), (1, 1), (2, 2)]
    assert sum(each.metrics["examples"] for each in slices) == len(found)


def test_days():
    assert {day: x["examples"] for day, x in by_day(rows()).items()} == dict.fromkeys(range(4), 100)


def test_a_weight_counts_as_so_many_rows():
    found = rows(40)
    counts = np.random.default_rng(1).integers(0, 3, 40)
    weighted = dataclasses.replace(found, weights=counts.astype(np.float32))
    repeated = found[np.repeat(np.arange(40), counts)]
    expected, metrics = repeated.metrics(), weighted.metrics()
    for name in ("auc", "log_loss", "calibration", "label_rate", "prediction"):
        assert metrics[name] == pytest.approx(expected[name])
    (once,), (alike,) = reliability(weighted, 1), reliability(repeated, 1)
    assert once.label_rate == pytest.approx(alike.label_rate)
    assert once.prediction == pytest.approx(alike.prediction)
    # A bucket counts with the weight of its rows.
    light = dataclasses.replace(rows(40), labels=(np.arange(40) < 20).astype(np.float32))
    light = dataclasses.replace(light, logits=light.labels, weights=1 + 8 * light.labels)
    high, low = light.probabilities[0], light.probabilities[-1]
    error = calibration_error(reliability(light, 2))
    assert error == pytest.approx(0.9 * (1 - high) + 0.1 * low)
    none = dataclasses.replace(found, weights=np.zeros(40, np.float32))
    nothing = none.metrics()
    assert nothing["examples"] == 40
    assert np.isnan(nothing["auc"])
    assert reliability(none, 2) == []
    assert np.isnan(calibration_error([]))


@pytest.mark.parametrize("weighted", [False, True])
def test_kept_negatives_count_for_those_left_out(weighted: bool):
    """The report of a run then agrees with its summary."""
    found, kept = rows(40), 0.25
    weights = np.linspace(0, 2, 40, dtype=np.float32) if weighted else None
    examples = dataclasses.replace(found.examples, sample_weights=weights)
    model = Mock(spec=Predictor, shift=np.log(kept))
    model.logits.return_value = [found.logits]
    scored = score(model, "train", Split((examples,)), [0], 99, kept).metrics()
    expected = Measures(shift=np.log(kept))(found.logits, Split((examples,)), kept)
    assert {name: scored[name] for name in expected} == pytest.approx(expected, rel=1e-5)
