"""Places among all items, whatever the blocks and the mesh."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.mesh import make_mesh
from dlrm_jax.retrieval import ranking
from dlrm_jax.retrieval.ranking import Ranking, nearest, ranking_metrics


def place_by_loops(scores: np.ndarray, own: int, excluded: np.ndarray) -> int:
    rivals = set(range(len(scores))) - set(excluded[excluded >= 0].tolist()) - {own}
    return sum(bool(scores[item] >= scores[own]) for item in rivals)


@pytest.mark.parametrize(
    ("mesh", "block"), [pytest.param("1x1", 100, marks=pytest.mark.thorough), ("2x4", 16)]
)
def test_places_are_among_what_is_not_excluded(mesh: str, block: int):
    rng = np.random.default_rng(0)
    users = rng.integers(-2, 3, (37, 3)).astype(np.float32)  # with ties
    items = rng.integers(-2, 3, (23, 3)).astype(np.float32)
    chosen = rng.integers(0, 23, 37)
    excluded = rng.integers(-1, 23, (37, 4))
    excluded[:5, 0] = chosen[:5]  # is ranked all the same
    found = Ranking(make_mesh(mesh), block)(users, items, chosen, excluded)
    scores = users @ items.T
    expected = [place_by_loops(*each) for each in zip(scores, chosen, excluded, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("mesh", "block"), [pytest.param("1x1", 100, marks=pytest.mark.thorough), ("2x4", 16)]
)
def test_first_items_are_not_excluded(mesh: str, block: int):
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(37, 3)), rng.normal(size=(23, 3))
    excluded = rng.integers(-1, 23, (37, 4))
    rank = Ranking(make_mesh(mesh), block)
    found = rank.first(users.astype("f4"), items.astype("f4"), 5, excluded)
    for own, scores, left_out in zip(found, users @ items.T, excluded, strict=True):
        order = [x for x in np.argsort(-scores) if x not in left_out]
        assert own.tolist() == order[:5]


def test_scores_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "_SCORES", 25)
    rank = Ranking(make_mesh("1x1"), 100)
    shapes = []
    compiled = rank._places
    monkeypatch.setattr(rank, "_places", lambda *x: (shapes.append(x[0].shape), compiled(*x))[1])
    places = rank(np.ones((6, 1), "f4"), np.arange(10.0, dtype="f4")[:, None], np.arange(6), NONE)
    assert places.tolist() == [9, 8, 7, 6, 5, 4]
    assert shapes == [(2, 1)] * 3


NONE = np.empty((6, 0), np.int64)


def test_scores_that_are_no_numbers_find_nothing():
    users = np.full((6, 2), np.nan, np.float32)
    places = Ranking(make_mesh("1x1"), 8)(users, np.ones((9, 2), "f4"), np.arange(6), NONE)
    assert set(ranking_metrics(places, (1, 8)).values()) == {0}


def test_metrics():
    found = ranking_metrics(np.array([0, 3, 1, 20]), (1, 4))
    gain = [1, 1 / np.log2(5), 1 / np.log2(3), 0]
    assert found == pytest.approx(
        {"recall@1": 0.25, "recall@4": 0.75, "ndcg@1": 0.25, "ndcg@4": np.mean(gain)}
    )
    weighted = ranking_metrics(np.array([0, 3]), (1,), np.array([3.0, 1.0]))
    assert weighted == {"recall@1": 0.75, "ndcg@1": 0.75}


def test_the_nearest_items_are_others_in_the_order_of_their_products():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    assert nearest(vectors, np.array([0, 2]), 2).tolist() == [[1, 3], [3, 1]]
    assert nearest(vectors, np.array([0]), 9).shape == (1, 3)
