"""Requests with random ids, and histories of all lengths from none on."""

from __future__ import annotations

import numpy as np

from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.requests import Requests

COLUMNS = Columns(
    history={"seen": "item", "did": "action"},
    candidates={"item": "item"},
    context={"country": "country"},
    history_time="seen_at",
    time="at",
)
ROWS = {"item": 30, "action": 4, "country": 5}


def random_requests(count: int, longest: int, most: int, seed: int = 0) -> Requests:
    """Requests with up to ``longest`` tokens and ``most`` candidates."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, count)
    lengths[::7] = 0
    counts = rng.integers(1, most + 1, count)
    offsets, places = (np.concatenate([[0], np.cumsum(x)]) for x in (lengths, counts))
    times = np.sort(rng.integers(10**6, 2 * 10**6, count))

    def ids(table: str, size: int) -> np.ndarray:
        return rng.integers(0, ROWS[table], size).astype(np.int32)

    history_times = np.concatenate(
        [np.sort(rng.integers(0, times[i], n)) for i, n in enumerate(lengths)]
    )
    return Requests(
        COLUMNS,
        ROWS,
        {name: ids(table, offsets[-1]) for name, table in COLUMNS.history.items()},
        offsets,
        history_times,
        {name: ids(table, places[-1]) for name, table in COLUMNS.candidates.items()},
        places,
        rng.integers(0, 2, places[-1]).astype(np.float32),
        {"country": ids("country", count)},
        times,
    )
