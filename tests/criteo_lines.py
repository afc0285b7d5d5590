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


# Share of missing values in the real files: of the integers, and of some of the hexadecimal ids.
_NO_INTEGER = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0.001, 0.04, 0.45, 0.04, 0.77, 0.22)
_NO_ID = {2: 0.03, 3: 0.03, 11: 0.03, 15: 0.03, 18: 0.44, 19: 0.44, 21: 0.76, 24: 0.44, 25: 0.44}


def realistic(lines, seed=0):
    """Lines written for tests, odd as real ones are.

    Values are missing together and at the end of a line, a few ids have most of the places and most
    ids come once, ids may look like numbers, integers are small, huge and from -3 on, some columns
    nearly always have one value, the last line has no end.
    """
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(3, 50 * lines, 26).astype(int)
    rng.shuffle(sizes)
    rows = []
    for _ in range(lines):
        counts = np.floor(rng.lognormal(1, 2, 13)).astype(int)
        counts[1] -= 3
        bare = rng.random() < 0.05  # of what is known of the others
        integers = [
            "" if bare or rng.random() < share else str(count)
            for count, share in zip(counts, _NO_INTEGER, strict=True)
        ]
        sparse = rng.random()  # the ends of a line are missing together
        ids = [
            "" if sparse < _NO_ID.get(i, 0) else f"{(rank * 0x9E3779B1 + i) % 2**32:08x}"
            for i, rank in enumerate(np.minimum(rng.zipf(1.3, 26), sizes))
        ]
        rows.append("\t".join([str(int(rng.random() < 0.25)), *integers, *ids]))
    return "\n".join([*rows, rows[0].split("\t", 1)[0] + "\t" * 39])
