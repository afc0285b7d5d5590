"""Examples that carry their number in every array, whole or cut into days."""

import itertools

import numpy as np

from dlrm_jax.data.arrays import Examples, Split


def numbered(n: int, cuts: tuple[int, ...] = (), weighted: bool = False) -> Split:
    """Examples 0 to n - 1, in days that end at the cuts."""
    number = np.arange(n)
    examples = Examples(
        number[:, None].astype(np.float32),
        np.stack([number, number + 1], axis=1).astype(np.int32),
        number.astype(np.float32),
        (number / 4).astype(np.float32) if weighted else None,
    )
    edges = [0, *sorted(cuts), n]
    days = (examples[a:b] for a, b in itertools.pairwise(edges))
    return Split(tuple(days))
