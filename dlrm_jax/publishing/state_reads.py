"""What publications read of a run's state, which several processes may have between them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.processes import Ask
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
    """Answers requests for parts of states, see `processes.led`.

    Args:
        collection: tables of the run.
        touched: rows that steps have changed.
    """

    def __init__(self, collection: EmbeddingCollection, touched: TouchedRows):
        self._collection, self._touched = collection, touched
        self._taken: Numbers = {}

    def of(self, state: TrainState, maps: LiveMaps | None) -> Ask:
        """The function that answers requests for parts of a state.

        Args:
            state: state, which mustn't be donated meanwhile.
            maps: maps of the training; None without dynamic ids.
        """
        return functools.partial(self._answer, state, maps)

    def _answer(self, state: TrainState, maps: LiveMaps | None, request: Any) -> Any:
        what, *arguments = request
        if what == "take":
            self._taken = self._touched.take()
            return self._taken
        if what == "taken rows":
            return self._collection.read_rows(state.embedding, self._taken)
        if what == "keys":
            return maps.keys_at(int(state.step)) if maps else {}
        table, first, end = arguments
        numbers = {table: np.arange(first, end, dtype=np.int32)}
        return self._collection.read_rows(state.embedding, numbers)[table]
