from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stream_log import SCHEMA

from dlrm_jax.config import Config
from dlrm_jax.data.auc import grouped_auc
from dlrm_jax.data.batches import Batch
from dlrm_jax.data.preprocessing.raw_ids import RawIds
from dlrm_jax.errors import UserError
from dlrm_jax.stream.batches import StreamBatch
from dlrm_jax.stream.position import Progress
from dlrm_jax.stream.prequential import Prequential
from dlrm_jax.stream.rows import Rows
from dlrm_jax.training.metrics import binary_metrics

CONFIG = Config(batch_size=8, metrics=("gauc:user", "calibration_by:item"))


def given(step: int) -> tuple[np.ndarray, StreamBatch]:
    rng = np.random.default_rng(step)
    ids = rng.integers(0, 3, (8, 4), np.int32)
    labels = rng.integers(0, 2, 8).astype(np.float32)
    weights = rng.random(8).astype(np.float32)
    dense, progress = np.zeros((8, 1), np.float32), Progress(examples=8 * step)
    batch = Batch(dense, ids, labels, weights)
    groups = {"user": rng.integers(-1, 3, 8)}
    logits = rng.normal(size=8).astype(np.float32)
    raw = RawIds(rng.integers(-5, 5, (8, 4)).view(np.uint64), np.ones((8, 4), bool))
    times = np.full(8, (10**9 + step) * 10**6)
    return logits, StreamBatch(batch, Rows(dense, raw, labels, weights, groups, times), progress)


def windows(prequential: Prequential, steps: range) -> dict[int, dict[str, Any]]:
    found = {step: prequential.add(step, *given(step)) for step in steps}
    return {step: metrics for step, metrics in found.items() if metrics}


def test_windows_have_the_metrics_of_their_examples():
    found = windows(Prequential(CONFIG, SCHEMA, 25), range(1, 8))
    assert list(found) == [3, 6]
    all_of = [given(step) for step in (4, 5, 6)]
    logits = np.concatenate([x for x, _ in all_of])
    labels = np.concatenate([x.batch.labels for _, x in all_of])
    weights = np.concatenate([x.batch.sample_weights for _, x in all_of])
    users = np.concatenate([x.rows.groups["user"] for _, x in all_of])
    known = users >= 0
    expected = binary_metrics(logits, labels, weights) | {
        "gauc:user": grouped_auc(logits[known], labels[known], users[known], weights[known]),
        "position": 48,
        "time": 1e9 + 6,
    }
    assert expected.items() <= found[6].items()
    assert found[6]["examples"] == 24
    assert np.isfinite(found[6]["calibration_by:item"])


def test_groups_of_a_categorical_column_are_its_values():
    """The rows of hashed ids are shared, and ids without a row of their own share a default."""
    config = Config(batch_size=8, metrics=("gauc:item", "calibration_by:item", "gauc:tags"))
    prequential, (logits, batch) = Prequential(config, SCHEMA, 8), given(1)
    items = batch.rows.raw.ids[:, 1].view(np.int64)
    assert (items < 0).any()
    tagged = np.arange(8) % 4 > 0
    batch.rows.raw.present[:, 2] = tagged
    found = prequential.add(1, logits, batch)
    assert found
    labels, weights = batch.batch.labels, batch.batch.sample_weights
    assert found["gauc:item"] == grouped_auc(logits, labels, items, weights)
    rows = logits, labels, batch.rows.raw.ids[:, 2], weights
    assert found["gauc:tags"] == grouped_auc(*(x[tagged] for x in rows))
    values = [items == item for item in np.unique(items)]
    far = weights * (1 / (1 + np.exp(-logits.astype(np.float64))) - labels)
    expected = sum(abs(far[own].sum()) for own in values) / weights.sum()
    assert found["calibration_by:item"] == pytest.approx(expected)


def test_a_window_goes_on_from_its_arrays():
    unbroken = windows(Prequential(CONFIG, SCHEMA, 24), range(1, 7))
    for last in range(1, 6):
        first = Prequential(CONFIG, SCHEMA, 24)
        found = windows(first, range(1, last + 1))
        second = Prequential(CONFIG, SCHEMA, 24)
        second.restore(first.arrays())
        found |= windows(second, range(last + 1, 7))
        np.testing.assert_equal(found, unbroken)


def test_the_end_of_a_window_leaves_no_arrays():
    prequential = Prequential(CONFIG, SCHEMA, 24)
    windows(prequential, range(1, 3))
    assert prequential.arrays()
    windows(prequential, range(3, 4))
    assert not prequential.arrays()


def test_a_metric_that_is_new_has_no_groups_before():
    plain = Prequential(Config(batch_size=8), SCHEMA, 16)
    plain.add(1, *given(1))
    grouped = Prequential(CONFIG, SCHEMA, 16)
    grouped.restore(plain.arrays())
    logits, second = given(2)
    found = grouped.add(2, logits, second)
    assert found
    known = second.rows.groups["user"] >= 0
    rows = logits, second.batch.labels, second.rows.groups["user"], second.batch.sample_weights
    assert found["gauc:user"] == grouped_auc(*(x[known] for x in rows))


def test_predictions_that_arent_finite_are_an_error():
    logits, batch = given(1)
    logits[3] = np.nan
    with pytest.raises(UserError, match="1 of the 8 predictions before step 1 aren't finite"):
        Prequential(CONFIG, SCHEMA, 16).add(1, logits, batch)


def test_a_column_that_isnt_there_is_named():
    with pytest.raises(UserError, match="gauc:session groups by 'session'") as error:
        Prequential(Config(metrics=("gauc:session",)), SCHEMA, 16)
    assert "and prepare the data again" not in str(error.value)  # a stream isn't prepared
