"""Maps from ids to rows that run ahead of the training which they serve.

Maps change with each batch, in the loader's thread, a few batches ahead of the step. The rows of a
batch's new ids begin afresh right before its step. A record of each batch takes copies of the maps
back to those of an earlier step.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from dlrm_jax.data.batches import Batch, Batches
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.dynamic_ids.translation import Undos
from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import connected
from dlrm_jax.host_tables.row_feed import RowFeed
from dlrm_jax.training.learner import Learner, TrainState


class _Ahead(NamedTuple):
    """The batch of a step, counted from 0.

    Attributes:
        step: step.
        undo: record of what the batch has changed.
        fresh: rows of its new ids; none while they are on their way.
    """

    step: int
    undo: Undos
    fresh: Mapping[str, Int32[np.ndarray, " F"]]


class LiveMaps:
    """The maps of a training: one thread translates batches, another one trains on them.

    All of several processes make it together, and then translate the same batches: each has some
    parts of the maps, and its own samples of a batch, see `IdMaps`.

    Args:
        learner: learner of the tables.
        maps: maps after the first ``step`` batches. From now on they are this object's own.
        seed: seed of the initial values of rows.
        step: number of batches that the maps have seen.
    """

    def __init__(self, learner: Learner, maps: IdMaps, seed: int, step: int = 0):
        self._learner, self._maps, self._seed = learner, maps, seed
        self._exchange = connected()
        self._loading = maps.over(self._exchange)  # the same maps, for the thread that loads
        self._next = step
        self._ahead: collections.deque[_Ahead] = collections.deque()
        self._lock = threading.Lock()

    def translate(
        self, ids: Any, now: int | None = None, present: Bool[np.ndarray, "B C"] | None = None
    ) -> Int32[np.ndarray, "B C"]:
        """The rows of the next batch's ids.

        In several processes, the samples are this process's own.

        Args:
            ids: ids of the batch, see `IdMaps.translate`.
            now: time of the batch; None for its step.
            present: whether there is an id, see `IdMaps.translate`.

        Raises:
            UserError: see `IdMaps.translate`; the message names the step.
            LostProcessError: another process has ended, or `stop` was called.
        """
        step, maps = self._next, self._loading
        try:
            asked = maps.ask(ids, present)
            # Not while others are waited for, who may wait for the thread that trains.
            with self._lock:
                changed = maps.change(asked, step if now is None else now)
                self._ahead.append(_Ahead(step, changed.undo, {}))
            try:
                found = maps.answer(asked, changed)
            except UserError:
                with self._lock:
                    maps.undo(changed)
                    self._ahead.pop()
                raise
        except UserError as error:
            raise UserError(f"the batch of step {step + 1}: {error}") from error
        with self._lock:
            self._ahead[-1] = _Ahead(step, changed.undo, found.fresh)
        self._next += 1
        return found.ids

    def stop(self) -> None:
        """Ends a `translate` that waits for other processes; no batch may follow."""
        if self._exchange:
            self._exchange.close()

    def begin(self, state: TrainState, step: int) -> TrainState:
        """The state with which a batch is trained on: the rows of its new ids begin afresh.

        Args:
            state: state before the batch; it is donated.
            step: number of updates before the batch, the state's.
        """
        while self._ahead[0].step < step:  # nothing goes back there any more
            self._ahead.popleft()
        number, _, fresh = self._ahead[0]
        assert number == step, f"expected step {number}, got {step}"
        collection = self._learner.collection
        embedding = collection.reset_rows(state.embedding, fresh, self._seed, step)
        return dataclasses.replace(state, embedding=embedding)

    @property
    def fresh(self) -> Mapping[str, Int32[np.ndarray, " F"]]:
        """The rows that began afresh for the batch that has begun last, by table."""
        return self._ahead[0].fresh

    def maps_at(self, step: int) -> IdMaps:
        """A copy of the maps after so many updates, for that state's evaluation or checkpoint.

        It has this process's parts: its `find`, `arrays` and `keys` are for all processes together.

        Args:
            step: number of updates, more than that of the last batch that has begun.
        """
        with self._lock:
            return self._maps.copy(self._undos_from(step))

    def keys_at(self, step: int) -> dict[str, Keys]:
        """The ids of the rows after so many updates, by map. All processes call it together.

        Args:
            step: number of updates, see `maps_at`.
        """
        with self._lock:
            own = self._maps.own_keys(self._undos_from(step))
        return self._maps.joined_keys(own)

    def _undos_from(self, step: int) -> list[Undos]:
        """The records of the batches ahead of a step."""
        return [each.undo for each in self._ahead if each.step >= step]

    def rewind(self, step: int) -> None:
        """Takes the maps themselves back to those after so many updates; no batch may follow.

        Args:
            step: number of updates, see `maps_at`.
        """
        self._maps.maps = self.maps_at(step).maps
        with self._lock:
            self._ahead = collections.deque(x for x in self._ahead if x.step < step)


@contextlib.contextmanager
def stopped_after(maps: LiveMaps | RowFeed | None) -> Iterator[None]:
    """Stops maps at the end; enter it behind the thread that translates, which then can end.

    Processes load different numbers of batches ahead, so one may wait for others that have ended
    their training.

    Args:
        maps: maps; None for nothing.
    """
    try:
        yield
    finally:
        if maps:
            maps.stop()


class TranslatedBatches:
    """Training batches whose ids have been replaced by rows, each after the one before.

    Args:
        batches: batches of ids by step.
        maps: maps of the training, which have seen the batches before the first one asked for.
    """

    def __init__(self, batches: Batches, maps: LiveMaps):
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches, self.maps = batches, maps

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step. Steps come in order.

        Raises:
            UserError: see `LiveMaps.translate`.
        """
        batch = self._batches[step]
        return batch._replace(ids=self.maps.translate(batch.ids))
