"""Metrics of the places that chosen items have among all items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

from dlrm_jax.training.ranking import hit_ratio, mean_reciprocal_rank, ndcg

STRATA = ("head", "middle", "tail")
"""Parts of the items, by popularity."""


def metrics(places: Int64[np.ndarray, " Q"], at: Sequence[int]) -> dict[str, float]:
    """``hr@k`` and ``ndcg@k`` for each k, and ``mrr``, the mean of 1 / (1 + place).

    Args:
        places: number of items that are ranked before the chosen one of each question, [Q].
        at: values of k.
    """
    found = {f"hr@{k}": hit_ratio(places, k) for k in at}
    found |= {f"ndcg@{k}": ndcg(places, k) for k in at}
    return found | {"mrr": mean_reciprocal_rank(places)}


def coverage(
    recommended: Int[np.ndarray, "Q K"], items: int, at: Sequence[int]
) -> dict[str, float]:
    """``coverage@k`` for each k: the share of the items that are among the first k of any question.

    Args:
        recommended: first items of each question, the best one first, [Q, K]; negative for none.
        items: number of items.
        at: values of k, at most K.
    """
    found = {k: np.unique(recommended[:, :k]) for k in at}
    return {f"coverage@{k}": int((own >= 0).sum()) / items for k, own in found.items()}


def strata_of(counts: Int64[np.ndarray, " V"]) -> Int64[np.ndarray, " V"]:
    """The stratum of each item: 0 for the head, 1 for the middle, 2 for the tail.

    The head are the most frequent items, down to the one at which they have a third of all
    interactions; the middle are the next ones, up to two thirds.

    Args:
        counts: interactions of each item, [V].
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    found = np.empty(len(counts), np.int64)
    found[order] = np.minimum(3 * before // max(1, counts.sum()), 2)
    found[counts == 0] = 2
    return found


def by_stratum(
    places: Int64[np.ndarray, " Q"],
    strata: Int64[np.ndarray, " Q"],
    at: Sequence[int],
) -> dict[str, dict[str, float]]:
    """The metrics of the questions whose chosen item is of a stratum, and their number.

    Args:
        places: see `metrics`.
        strata: stratum of each chosen item, see `strata_of`.
        at: values of k.

    Returns:
        Metrics by the name of the stratum; without those that nothing was chosen of.
    """
    found = {}
    for number, name in enumerate(STRATA):
        if (own := strata == number).any():
            found[name] = {"questions": int(own.sum()), **metrics(places[own], at)}
    return found
