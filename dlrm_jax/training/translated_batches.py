"""Batches of tables with dynamic ids: translated ahead of their steps, and made ready before them.

The maps from ids to rows change with each batch, in the loader's thread, a few batches ahead of the
step. A record of each batch takes them back to those of an earlier step.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dlrm_jax.data.batches import Batch, Batches
from dlrm_jax.dynamic_ids.id_maps import IdMaps, Undos
from dlrm_jax.errors import UserError
from dlrm_jax.training.learner import Learner, TrainState


class Translated(NamedTuple):
    """A batch of rows.

    Attributes:
        step: number of updates before that of the batch.
        batch: batch with rows as ids, on the host or placed on devices.
        fresh: rows that begin afresh before it, by table.
    """

    step: int
    batch: Batch
    fresh: dict[str, np.ndarray]


class TranslatedBatches:
    """Training batches whose ids have been replaced by rows, each after the one before.

    Args:
        learner: learner of the tables.
        batches: batches of ids by step. Ids are those that `IdMaps.translate` takes.
        maps: maps after the first ``step`` batches. From now on they are this object's own.
        seed: seed of the initial values of rows.
        step: number of batches that the maps have seen: the first one that is asked for.
        clock: function from a batch's step and the batch to its time; the step by default.

    Raises:
        UserError: there are several processes, each of which would have maps of its own.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        maps: IdMaps,
        seed: int,
        step: int = 0,
        clock: Callable[[int, Batch], int] = lambda step, batch: step,
    ):
        if jax.process_count() > 1:
            raise UserError(
                f"dynamic ids: expected one process, whose map all devices share, got "
                f"{jax.process_count()}; give tables ids that are rows, or start one process"
            )
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._learner, self._batches, self._maps = learner, batches, maps
        self._seed, self._clock = seed, clock
        self._next = step
        self._undos: collections.deque[tuple[int, Undos]] = collections.deque()
        self._lock = threading.Lock()  # the maps change in the loader's thread

    def __getitem__(self, step: int) -> Translated:
        """The batch of a step, on the host. Steps come in order.

        Raises:
            UserError: see `IdMaps.translate`; the message names the step.
        """
        assert step == self._next, f"expected step {self._next}, got {step}"
        batch = self._batches[step]
        with self._lock:
            try:
                found = self._maps.translate(batch.ids, self._clock(step, batch))
            except UserError as error:
                raise UserError(f"the batch of step {step + 1}: {error}") from error
            self._undos.append((step, found.undo))
            self._next += 1
        return Translated(step, batch._replace(ids=found.ids), found.fresh)

    def put(self, translated: Translated) -> Translated:
        """Places a batch on devices; see `Learner.put`."""
        return translated._replace(batch=self._learner.put(translated.batch))

    def begin(self, state: TrainState, translated: Translated) -> TrainState:
        """The state with which a batch is trained on: its new ids' rows begin afresh.

        Args:
            state: state before the batch; it is donated.
            translated: batch of the state's step.
        """
        step = translated.step
        while self._undos and self._undos[0][0] < step:  # nothing goes back there any more
            self._undos.popleft()
        collection = self._learner.collection
        embedding = collection.reset_rows(state.embedding, translated.fresh, self._seed, step)
        return dataclasses.replace(state, embedding=embedding)

    def rewind(self, step: int) -> None:
        """Takes the maps themselves back to those after so many updates; no batch may follow.

        Args:
            step: number of updates, see `maps_at`.
        """
        self._maps.load(self.maps_at(step).arrays())

    def maps_at(self, step: int) -> IdMaps:
        """A copy of the maps after so many updates, for that state's evaluation or checkpoint.

        Args:
            step: number of updates, more than that of the last batch that has begun.
        """
        with self._lock:
            later = [undo for number, undo in self._undos if number >= step]
            return self._maps.copy(later)
