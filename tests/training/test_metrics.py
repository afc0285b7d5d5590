import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from dlrm_jax.data.auc import grouped_auc
from dlrm_jax.errors import UserError
from dlrm_jax.training.metrics import HIGHER_IS_BETTER, METRICS, auc, binary_metrics
from dlrm_jax.training.streamed_metrics import StreamedMetrics

# Few values, so that many tie, or any moderate one.
LOGIT = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.floats(-20, 20, width=32))
SAMPLES = st.lists(st.tuples(LOGIT, st.booleans()), min_size=1, max_size=40)


def arrays(samples):
    logits, labels = zip(*samples, strict=True)
    return np.array(logits, np.float32), np.array(labels, np.float32)


@given(SAMPLES)
def test_metrics_are_those_of_scikit_learn(samples):
    logits, labels = arrays(samples)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    got = binary_metrics(logits, labels)
    assert got["log_loss"] == pytest.approx(
        log_loss(labels, probabilities, labels=[0, 1]), rel=1e-6, abs=1e-12
    )
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, logits > 0))
    assert got["examples"] == len(samples)
    if 0 < labels.sum() < len(labels):
        assert got["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    else:
        assert math.isnan(got["auc"])
        assert math.isnan(got["normalized_entropy"])
    assert math.isnan(got["calibration"]) == (labels.sum() == 0)


@given(SAMPLES)
def test_auc_counts_pairs_and_half_of_ties(samples):
    logits, labels = arrays(samples)
    positive, negative = logits[labels == 1], logits[labels == 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    expected = np.mean(pairs) if pairs else math.nan
    assert auc(logits, labels) == pytest.approx(expected, abs=1e-12, nan_ok=True)


WEIGHTED = st.lists(
    st.tuples(LOGIT, st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


def area(rows) -> float:
    """The weighted share of the pairs in the right order, with two plain loops."""
    above = pairs = 0.0
    for z, is_positive, weight, _ in rows:
        for other, other_is_positive, other_weight, _ in rows:
            if is_positive and not other_is_positive:
                pairs += weight * other_weight
                above += weight * other_weight * ((z > other) + 0.5 * (z == other))
    return above / pairs if pairs else math.nan


@settings(max_examples=40)
@given(WEIGHTED, st.sampled_from([0.0, -2.0]))
def test_weighted_metrics_are_those_of_plain_loops(rows, shift):
    logits, labels = arrays([row[:2] for row in rows])
    weights, groups = (np.array([row[i] for row in rows]) for i in (2, 3))
    rows = [(float(z), y, w, g) for z, (_, y, w, g) in zip(logits, rows, strict=True)]
    if not weights.any():
        with pytest.raises(UserError, match="weight 0"):
            binary_metrics(logits, labels, weights)
        return
    found = binary_metrics(logits, labels, weights.astype(np.float32), shift)
    streamed = StreamedMetrics(shift=shift)
    for first in range(0, len(rows), 7):
        part = slice(first, first + 7)
        streamed.add(logits[part], labels[part], weights[part].astype(np.float32))
    assert streamed.metrics() == pytest.approx(found, rel=1e-9, abs=1e-12, nan_ok=True)
    total = weights.sum()
    loss = sum(w * math.log1p(math.exp(-(z + shift) * (1 if y else -1))) for z, y, w, _ in rows)
    right = sum(w * ((z + shift > 0) == y) for z, y, w, _ in rows)
    assert found["log_loss"] == pytest.approx(loss / total, rel=1e-9, abs=1e-12)
    assert found["accuracy"] == pytest.approx(right / total)
    assert found["auc"] == pytest.approx(area(rows), rel=1e-9, nan_ok=True)
    predicted = sum(w / (1 + math.exp(-z - shift)) for z, _, w, _ in rows)
    clicked = sum(w * y for _, y, w, _ in rows)
    assert found["calibration"] == pytest.approx(
        predicted / clicked if clicked else math.nan, rel=1e-9, nan_ok=True
    )
    of_groups = [[row for row in rows if row[3] == group] for group in range(4)]
    both = [(area(x), sum(w for _, _, w, _ in x)) for x in of_groups if not math.isnan(area(x))]
    expected = sum(a * w for a, w in both) / sum(w for _, w in both) if both else math.nan
    grouped = grouped_auc(logits, labels, groups, weights)
    assert grouped == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_weights_of_1_change_nothing():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=500).astype(np.float32).round(1), rng.random(500) < 0.3
    plain, ones = binary_metrics(logits, labels), np.ones(500)
    assert binary_metrics(logits, labels, ones) == pytest.approx(plain, rel=1e-12)
    groups = rng.integers(0, 40, 500)
    assert grouped_auc(logits, labels, groups, ones) == grouped_auc(logits, labels, groups)


def test_extreme_logits_stay_finite():
    logits = np.array([1000.0, -1000.0, 1e30, -1e30], np.float32)
    right = binary_metrics(logits, np.array([1, 0, 1, 0]))
    assert (right["log_loss"], right["auc"], right["accuracy"]) == (0, 1, 1)
    wrong = binary_metrics(logits[:2], np.array([0, 1]))
    assert (wrong["log_loss"], wrong["auc"], wrong["accuracy"]) == (1000, 0, 0)
    assert wrong["calibration"] == 1


def test_normalized_entropy_and_calibration_by_hand():
    # Predictions 3/4, 1/4, 1/4, 1/4 of labels 1, 0, 0, 0: right with 3/4 each time.
    logits = np.array([1, -1, -1, -1]) * np.log(3)
    got = binary_metrics(logits, np.array([1, 0, 0, 0]))
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert got["log_loss"] == pytest.approx(-np.log(0.75))
    assert got["normalized_entropy"] == pytest.approx(-np.log(0.75) / entropy)
    assert got["calibration"] == pytest.approx(1.5)
    # Always predicting the label rate has entropy 1 and calibration 1.
    constant = binary_metrics(np.full(4, -np.log(3)), np.array([0, 1, 0, 0]))
    assert constant["normalized_entropy"] == pytest.approx(1)
    assert constant["calibration"] == pytest.approx(1)
    assert constant["auc"] == 0.5


def test_names():
    assert set(binary_metrics(np.zeros(2), np.array([0, 1]))) == {*METRICS, "examples"}
    assert set(HIGHER_IS_BETTER) <= set(METRICS)


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="at least one sample, got none"):
        binary_metrics(np.zeros(0), np.zeros(0))
