"""The journal of a run on a stream: beside the state, its position and the open window."""

from __future__ import annotations

import time
from collections.abc import Callable

from dlrm_jax.data.batches import Batch
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.stream.position import Progress
from dlrm_jax.stream.prequential import Prequential
from dlrm_jax.training.journal import Journal, Replay
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.touched_rows import touched_rows


class StreamJournal:
    """Writes a journal while a run trains.

    Args:
        learner: learner of the run.
        seconds: seconds between two entries.
        prequential: windows of the evaluation.
        maps: maps of the training; None without dynamic ids.
        flush: function that flushes the metrics, so that none is older on disk than an entry.
    """

    def __init__(
        self,
        learner: Learner,
        seconds: float,
        prequential: Prequential,
        maps: LiveMaps | None,
        flush: Callable[[], None],
    ):
        self._seconds = seconds
        self._touched = touched_rows(learner)
        self._journal = Journal(learner, self._touched)
        self._prequential, self._maps, self._flush = prequential, maps, flush
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

    def trained(self, step: int, batch: Batch) -> None:
        """Is told of the batch of a step that has been started."""
        self._has_news = True
        self._touched.add(step, batch.ids)
        self._touched.done(step)
        if self._maps:  # of tables that the batch doesn't read, or that are frozen, too
            self._touched.mark(self._maps.fresh)

    def write(self, state: TrainState, progress: Progress, speed: float | None) -> None:
        """Writes an entry.

        Args:
            state: state, with the losses and predictions of all its steps read.
            progress: part of the stream that it was trained on.
            speed: examples per second so far; None if that isn't known.

        Raises:
            UserError: see `Journal.write`.
        """
        self._flush()
        of_step, arrays = self._maps_at(int(state.step)), self._prequential.arrays()
        notes = {"examples_per_second": speed, STREAM: progress.to_json()}
        self._journal.write(state, notes, of_step, arrays)
        self._written, self._has_news = time.monotonic(), False

    def _maps_at(self, step: int) -> IdMaps | None:
        return self._maps.maps_at(step) if self._maps else None
