"""Ranking metrics against plain loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from dlrm_jax.training.ranking import places, ranking_metrics


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 15), st.integers(1, 16))
def test_metrics_are_those_of_a_loop(seed: int, users: int, candidates: int, k: int):
    scores = np.random.default_rng(seed).integers(0, 6, (users, candidates)).astype(np.float32)
    hits, gain = 0, 0.0
    for own, *others in scores.tolist():
        before = sum(other >= own for other in others)  # ties are against the chosen one
        if before < k:
            hits += 1
            gain += 1 / math.log2(before + 2)
    found = ranking_metrics(scores, (k,))
    assert found == pytest.approx({f"hr@{k}": hits / users, f"ndcg@{k}": gain / users})


def test_metrics_are_those_of_scikit_learn_where_no_scores_are_equal():
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(100.0), (200, 1)), axis=1)
    chosen = np.zeros_like(scores)
    chosen[:, 0] = 1
    found = ranking_metrics(scores, (1, 10, 100))
    for k in (1, 10, 100):
        assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(chosen, scores, k=k))
    accuracy = top_k_accuracy_score(np.zeros(200), scores, k=10, labels=np.arange(100))
    assert found["hr@10"] == pytest.approx(accuracy)


def test_scores_that_are_no_numbers_come_last():
    scores = np.full((2, 5), np.nan, np.float32)
    assert places(scores, np.array([0, 3])).tolist() == [4, 4]
    assert ranking_metrics(scores, (4,)) == {"hr@4": 0, "ndcg@4": 0}
