"""A generated set of tables like those of a large production model.

Rows fall by a power law from a billion; widths are 32 to 256, bags 1 to 200 ids, most of them
short.
"""

from __future__ import annotations

import numpy as np

from dlrm_jax.embedding import Feature, Lookup, Table

_LARGEST = 10**9
_EXPONENT = 2.0  # the thousandth table has a thousand rows
_WIDTHS = 32, 64, 96, 128, 192, 256
_LONGEST = 200


def production_like(count: int, seed: int) -> tuple[list[Table], list[Feature], list[Lookup]]:
    """Tables of a production-like set, with a feature and a lookup each.

    Args:
        count: number of tables.
        seed: seed of widths and bags.
    """
    rng = np.random.default_rng(seed)
    widths = rng.choice(_WIDTHS, count)
    # Log-uniform: half of the bags have at most 14 ids.
    lengths = np.exp(rng.uniform(0, np.log(_LONGEST + 1), count)).astype(int)
    tables = [
        Table(f"t{rank}", max(int(_LARGEST * rank**-_EXPONENT), 10), int(widths[rank - 1]))
        for rank in range(1, count + 1)
    ]
    features = [Feature(t.name, int(n)) for t, n in zip(tables, lengths, strict=True)]
    return tables, features, [Lookup(t.name, t.name, t.name) for t in tables]
