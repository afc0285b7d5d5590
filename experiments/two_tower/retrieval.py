"""The loss of a retrieval model, and how well it finds what users choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from dlrm_jax.training.ranking import hit_ratio, places

Scores = Callable[[Int32[np.ndarray, " n"]], Float32[np.ndarray, "n I"]]
"""Gives the scores of all items for some users, in an array of its own."""

# Scores of all items for as many users take little memory.
_USERS_PER_BLOCK = 1000


def in_batch_softmax(
    scores: Float[Array, "B B"], item_ids: Int[Array, " B"], log_frequency: Float[Array, " B"]
) -> Float[Array, ""]:
    """The mean cross-entropy of each query's own item among all items of the batch.

    A frequent item comes into many batches, and would be punished as often for not being chosen.
    Less the logarithm of its frequency, its scores become those of a softmax over the whole corpus
    (Yi et al., 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", section 4.1).

    Args:
        scores: of queries (rows) and items (columns); the own ones on the diagonal.
        item_ids: of the columns; where the own item comes again as another query's, it counts once.
        log_frequency: the logarithm of how often the item comes, up to a constant.
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

    All items are ranked but those known of the user. Items with equal scores come before the
    held-out one.

    Args:
        scores: of all items, asked for some users at a time.
        known: items of each user that aren't to be found again.
        held_out: the item of each user to find, not a known one.
        ranks: the values of k.
    """
    before = np.empty(len(known), np.int64)
    for first in range(0, len(known), _USERS_PER_BLOCK):
        users = np.arange(first, min(first + _USERS_PER_BLOCK, len(known)), dtype=np.int32)
        found = scores(users)
        np.put_along_axis(found, known[users], -np.inf, axis=1)
        before[users] = places(found, held_out[users])
    return [hit_ratio(before, rank) for rank in ranks]
