"""Text in Criteo's layout, what ids its definition gives, and what came of it."""

import numpy as np

IN_TIME = ("train", "test", "validation")
"""The splits in the order of their rows."""


def ids_of(dataset, split):
    return np.concatenate([day.ids for day in dataset.splits[split].days])


def dense_of(dataset, split):
    return np.concatenate([day.dense for day in dataset.splits[split].days])


def text(lines, seed=0):
    """Lines in Criteo's layout; values of the last day are partly new."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(lines):
        limit = 6 if i < lines * 6 // 7 else 9
        integers = ["" if n == 0 else str(n - 3) for n in rng.integers(0, 50, 13)]
        hashes = ["" if c == 0 else f"{c * 0x1234567:08x}" for c in rng.integers(0, limit, 26)]
        rows.append("\t".join([str(rng.integers(0, 2)), *integers, *hashes]))
    return "\n".join(rows) + "\n"


def expected_ids(column, train_end, min_count=1):
    """Unseen and rare values are 0, missing ones 1, the others follow by frequency, then value."""
    seen = [value for value in column[:train_end] if value is not None]
    kept = sorted(
        {v for v in seen if seen.count(v) >= min_count}, key=lambda v: (-seen.count(v), v)
    )
    ids = {value: i + 2 for i, value in enumerate(kept)}
    return [1 if value is None else ids.get(value, 0) for value in column]
