"""Metrics of chunks are those of all examples at once."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.training.metrics import binary_metrics
from dlrm_jax.training.streamed_metrics import StreamedMetrics


@pytest.mark.parametrize(
    ("rows", "largest", "tolerance"),
    [(1, 8, 0), (1000, 1 << 20, 1e-12), (1000, 100, 1e-12), (20_000, 4000, 1e-4)],
)
def test_metrics(rows: int, largest: int, tolerance: float):
    """Few distinct logits are counted exactly, so many rows of them, too."""
    rng = np.random.default_rng(rows)
    logits = rng.normal(-1, 2, rows).astype(np.float32)
    if largest == 100:
        logits = np.round(logits * 5) / 5  # with ties, and both zeros
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    found = StreamedMetrics(largest)
    for first in range(0, rows, 77):
        found.add(logits[first : first + 77], labels[first : first + 77])
    assert found.rows == rows
    assert found.metrics() == pytest.approx(
        binary_metrics(logits, labels), abs=tolerance, nan_ok=True
    )
    assert len(found._logits) <= largest


def test_labels_between_0_and_1():
    logits = np.array([0, 1, -1], np.float32)
    labels = np.array([0.25, 0.75, 0.5], np.float32)
    found = StreamedMetrics()
    found.add(logits, labels)
    assert found.metrics() == pytest.approx(binary_metrics(logits, labels))
