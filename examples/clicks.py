"""Clicks of users on items, for the examples of models of your own."""

from __future__ import annotations

import numpy as np

from dlrm_jax.embedding import Feature, Lookup, Table

USERS, ITEMS, SEEN, DIM = 3000, 500, 5, 16

TABLES = [Table("users", rows=USERS, dim=DIM), Table("items", rows=ITEMS, dim=DIM)]
FEATURES = [Feature("user"), Feature("seen", max_ids=SEEN), Feature("item")]
LOOKUPS = [
    Lookup("user", "user", "users"),
    Lookup("seen", "seen", "items", pooling="mean"),
    Lookup("item", "item", "items"),  # the same table
]


def clicks(count: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ids by feature name, and labels: users click on items like those they have seen.

    Args:
        count: number of samples, B.
        seed: seed of the samples.
    """
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, ITEMS, (count, SEEN))
    item = np.where(rng.random(count) < 0.5, seen[:, 0] // 50 * 50, 0) + rng.integers(0, 50, count)
    labels = np.any(seen // 50 == item[:, None] // 50, axis=1)
    seen[rng.random(seen.shape) < 0.2] = -1  # shorter histories
    ids = {"user": rng.integers(0, USERS, count), "seen": seen, "item": item}
    return ids, labels.astype(np.float32)
