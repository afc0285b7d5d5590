"""What publications read of a run's state, which several processes may have between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.touched_rows import Numbers, TouchedRows

TAKE = ("take",)
"""Request for the rows that have changed since the last such request, see `TouchedRows.take`."""

TAKEN_ROWS = ("taken rows",)
"""Request for the values of these rows, by table."""

KEYS = ("keys",)
"""Request for the ids of the rows of the state, by map; none without dynamic ids."""


def rows_from(table: str, first: int, end: int) -> tuple[str, str, int, int]:
    """Request for consecutive rows of a table."""
    return "rows", table, first, end


class StateReads:
    """Answers requests for parts of a state, see `processes.led`.

    Args:
        collection: tables of the run.
        touched: rows that steps have changed.
    """

    def __init__(self, collection: EmbeddingCollection, touched: TouchedRows):
        self._collection, self._touched = collection, touched
        self._state: TrainState | None = None
        self._maps: LiveMaps | None = None
        self._taken: Numbers = {}

    def of(self, state: TrainState, maps: LiveMaps | None) -> StateReads:
        """The same of another state, which mustn't be donated meanwhile.

        Args:
            state: state.
            maps: maps of the training; None without dynamic ids.
        """
        self._state, self._maps = state, maps
        return self

    def __call__(self, request: Any) -> Any:
        """What a request is for; all processes have the same."""
        assert self._state
        what, *arguments = request
        if what == "take":
            self._taken = self._touched.take()
            return self._taken
        if what == "taken rows":
            return self._collection.read_rows(self._state.embedding, self._taken)
        if what == "keys":
            return self._maps.keys_at(int(self._state.step)) if self._maps else {}
        table, first, end = arguments
        numbers = {table: np.arange(first, end, dtype=np.int32)}
        return self._collection.read_rows(self._state.embedding, numbers)[table]
