"""A sample of a split, for evaluations that come often."""

from __future__ import annotations

import numpy as np

from dlrm_jax.data.arrays import Split


def evenly_spaced(split: Split, count: int) -> Split:
    """So many examples, evenly spaced and in their order, in memory.

    Args:
        split: examples to choose from.
        count: number of examples; if there are no more, or with 0, the split itself is returned.
    """
    if not 0 < count < len(split):
        return split
    return Split((split.take(np.arange(count) * len(split) // count),))
