"""The loss of retrieval against plain loops, and choices that are drawn as they say."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.retrieval.softmax import sampled_softmax


def loss_by_loops(scores, own, items, log_q) -> list[float]:
    losses = []
    for user, column in enumerate(own):
        others = [c for c in range(len(items)) if c == column or items[c] != items[column]]
        weights = {c: math.exp(scores[user, c]) / math.exp(log_q[c]) for c in others}
        losses.append(-math.log(weights[column] / sum(weights.values())))
    return losses


def test_the_softmax_corrects_for_frequency_and_counts_the_own_item_once():
    rng = np.random.default_rng(0)
    items = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], np.int32)
    own = np.array([1, 4, 7, 0], np.int32)
    scores = rng.normal(size=(4, 11)).astype(np.float32)
    log_q = rng.normal(size=11).astype(np.float32)
    expected = loss_by_loops(scores, own, items, log_q)
    losses = sampled_softmax(*map(jnp.asarray, (scores, own, items, log_q)))
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
