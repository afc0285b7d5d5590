"""The order in which ids lose their rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64, UInt32

from dlrm_jax.dynamic_ids.policy import DynamicIds


def in_order(
    policy: DynamicIds,
    rows: Int[np.ndarray, " n"],
    counts: UInt32[np.ndarray, " n"],
    last_seen: Int64[np.ndarray, " n"],
    now: int,
) -> Int[np.ndarray, " n"]:
    """Rows by the score of their ids, the lowest first: these lose their rows first.

    Args:
        policy: rules; see `DynamicIds` for the score, and for the order of equal ones.
        rows: rows that have ids.
        counts: number of times that each id was seen.
        last_seen: time at which each id was seen last.
        now: time.
    """
    if policy.evict == "lru":
        return rows[np.lexsort((rows, last_seen))]
    if policy.evict == "lfu":
        return rows[np.lexsort((rows, last_seen, counts))]
    score = counts.astype(np.float64) / (now - last_seen + 1).astype(np.float64)
    return rows[np.lexsort((rows, last_seen, score))]
