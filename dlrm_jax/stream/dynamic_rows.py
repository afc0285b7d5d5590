"""Rows of ids that come and go: the encoder of a stream whose tables have dynamic ids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.raw_ids import RawIds
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.training.live_maps import LiveMaps


class DynamicRows:
    """Gives raw ids the rows that the maps have for them, and hashed ones in other tables.

    Args:
        hashed: encoder of the tables without dynamic ids.
        maps: maps of the collection, which say what columns have dynamic ids.
        live: maps of the training.

    Attributes:
        now: time of the next batch by the clock of the maps; None for its step.
    """

    def __init__(self, hashed: HashedRows, maps: IdMaps, live: LiveMaps):
        self._hashed, self._live, self._columns = hashed, live, maps.columns
        self.now: int | None = None

    def tell_time(self, seconds: int) -> None:
        """Sets the clock of the maps to a time of events, in seconds since 1970."""
        self.now = seconds

    def __call__(self, raw: RawIds) -> Int32[np.ndarray, "N C"]:
        """The rows of the ids of a batch; `ABSENT` where a bag isn't full."""
        ids = self._hashed(raw).astype(np.int64)
        ids[:, self._columns] = raw.ids.view(np.int64)[:, self._columns]
        return self._live.translate(ids, self.now, raw.present)


def warn_of_few_rows(maps: IdMaps, batch_size: int, say: Callable[[str], None]) -> None:
    """Says which tables a batch may ask for more rows than they have, which would end the run.

    It is no error: a column may have few values.

    Args:
        maps: maps of the run.
        batch_size: number of examples of a batch.
        say: function that shows a line of text to the user.
    """
    for name, width in maps.widths.items():
        rows, most = maps.capacities[name], batch_size * width
        if rows < most:
            say(
                f"warning: table {name} has rows for {rows:,} ids, and a batch may have {most:,} "
                f"different ones, which would end the run until it is resumed with more rows"
            )
