"""The journal of a run that trains: which rows its steps change, and when an entry is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.training.journal import Journal
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.touched_rows import touched_rows


class RunJournal:
    """Writes a journal while a run trains; each process has the batches of its own samples.

    Args:
        learner: learner of the run.
        seconds: seconds between two entries.
        maps: maps of the training; None without dynamic ids.
        flush: function that flushes the metrics, so that none is older on disk than an entry.
        host_arrays: function that gives the arrays beside the state, by name.
    """

    def __init__(
        self,
        learner: Learner,
        seconds: float,
        maps: LiveMaps | None,
        flush: Callable[[], None],
        host_arrays: Callable[[], Mapping[str, np.ndarray]] = dict,
    ):
        self._seconds = seconds
        self._touched = touched_rows(learner)
        self._journal = Journal(learner, self._touched)
        self._maps, self._flush, self._host_arrays = maps, flush, host_arrays
        self._written, self._has_news = time.monotonic(), False

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint that entries follow."""
        return self._journal.begun

    @property
    def interval_over(self) -> bool:
        """Whether an entry is due by this process's clock, or the checkpoint that entries follow.

        It is written if `has_news`.
        """
        return time.monotonic() - self._written >= self._seconds

    @property
    def has_news(self) -> bool:
        """Whether there was a step since the last entry."""
        return self._has_news

    def begin(self, replay: Replay, step: int) -> None:
        """Goes on from a checkpoint and the entries behind it, which lead to a step."""
        self._journal.begin(replay, self._maps_at(step))
        self._written, self._has_news = time.monotonic(), False

    def will_train(self, step: int, ids: Int[np.ndarray, "B C"]) -> None:
        """Is told of a batch when it is read, perhaps by another thread; see `Publication`."""
        self._touched.add(step, ids)

    def step_done(self, step: int) -> None:
        """Is told of a step that has been started."""
        self._has_news = True
        self._touched.done(step)
        if self._maps:  # of tables that the batch doesn't read, or that are frozen, too
            self._touched.mark(self._maps.fresh)

    def write(self, state: TrainState, notes: Mapping[str, Any]) -> None:
        """Writes an entry.

        Args:
            state: state, with the losses and predictions of all its steps read.
            notes: metadata that differ from those of the checkpoint before.

        Raises:
            UserError: see `Journal.write`.
        """
        self._flush()
        self._journal.write(state, notes, self._maps_at(int(state.step)), self._host_arrays())
        self._written, self._has_news = time.monotonic(), False

    def _maps_at(self, step: int) -> IdMaps | None:
        return self._maps.maps_at(step) if self._maps else None
