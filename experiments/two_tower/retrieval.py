"""The loss of a retrieval model, and its recall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from dlrm_jax.training.ranking import hit_ratio, places

Scores = Callable[[Int32[np.ndarray, " n"]], Float32[np.ndarray, "n I"]]
"""Function that returns the scores of all items for some users, as a new array."""

# Scores of all items for so many users take little memory.
_USERS_PER_CHUNK = 1000


def in_batch_softmax(
    scores: Float[Array, "B B"], item_ids: Int[Array, " B"], log_frequency: Float[Array, " B"]
) -> Float[Array, ""]:
    """The mean cross-entropy of each query's own item among all items of the batch.

    A frequent item is in many batches, and would be punished as often for not being chosen.
    Subtracting the logarithm of its frequency turns the scores into those of a softmax over the
    whole corpus (Yi et al., 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", section 4.1).

    Args:
        scores: scores of queries (rows) and items (columns), [B, B]; a query's own item is on the
            diagonal.
        item_ids: id of each column's item, [B]; repeats of a query's own item count once.
        log_frequency: logarithm of each column's item frequency, [B], up to a constant.
    """
    again = (item_ids[:, None] == item_ids) & ~jnp.eye(len(item_ids), dtype=bool)
    logits = jnp.where(again, -jnp.inf, scores - log_frequency)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diag(logits))


def recall(
    scores: Scores,
    known: Int32[np.ndarray, "U K"],
    held_out: Int32[np.ndarray, " U"],
    ranks: Sequence[int],
) -> list[float]:
    """The share of users whose held-out item is among the first k items, for each k of ``ranks``.

    All items are ranked except the user's known ones, [U, K]. Items with equal scores come before
    the held-out one.
    """
    before = np.empty(len(known), np.int64)
    for first in range(0, len(known), _USERS_PER_CHUNK):
        users = np.arange(first, min(first + _USERS_PER_CHUNK, len(known)), dtype=np.int32)
        item_scores = scores(users)
        np.put_along_axis(item_scores, known[users], -np.inf, axis=1)
        before[users] = places(item_scores, held_out[users])
    return [hit_ratio(before, rank) for rank in ranks]


def nearest(
    vectors: Float32[np.ndarray, "I d"], chosen: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "n k"]:
    """The other items whose vectors have the largest products with those of chosen ones, in order.

    Args:
        vectors: vectors of all items, [I, d].
        chosen: items whose nearest ones are wanted, [n].
        count: number of others for each, less than I.
    """
    scores = vectors[chosen] @ vectors.T
    np.put_along_axis(scores, chosen[:, None], -np.inf, axis=1)
    return np.argsort(-scores, axis=1)[:, :count]
