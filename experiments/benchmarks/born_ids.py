"""Batches of ids of which some are new in each batch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32

from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.data.generated.zipf import bounded_zipf

_BATCHES = 64  # that are read again and again, but for the ids that are born
_BORN = 1 << 40  # ids from here on were never seen


class Ids:
    """Batches whose ids follow Zipf's law, with a share of new ones in some columns.

    Args:
        config: config of the tables, of a feature each.
        dynamic: columns with new ids.
        born: share of their ids that are new.
    """

    def __init__(self, config: Config, dynamic: list[int], born: float):
        rng = np.random.default_rng(config.seed)
        self._columns, self._born = dynamic, born
        size = config.batch_size

        def draw(rows: int) -> Int32[np.ndarray, " B"]:
            return bounded_zipf(rng, rows, config.zipf_exponent, (size,))

        self._batches = [
            Batch(
                rng.standard_normal((size, config.dense_features)).astype(np.float32),
                np.stack([draw(rows) for rows in config.table_rows], axis=1),
                (rng.random(size) < 0.3).astype(np.float32),
                np.ones(size, np.float32),
            )
            for _ in range(_BATCHES)
        ]
        self._new = rng.random((size, len(dynamic))) < born
        self.born = int(self._new.sum())

    def fixed(self, step: int) -> Batch:
        """A batch of rows."""
        return self._batches[step % _BATCHES]

    def raw(self, step: int) -> Batch:
        """A batch of ids, some of which come for the first time."""
        batch = self._batches[step % _BATCHES]
        ids = batch.ids.astype(np.int64)
        own = ids[:, self._columns]
        own[self._new] = _BORN + step * self.born + np.arange(self.born)
        ids[:, self._columns] = own
        return batch._replace(ids=ids)
