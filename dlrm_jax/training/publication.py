"""What a training tells those who publish its states: `dlrm_jax.publishing`; and its journal."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from dlrm_jax.data.batches import Batches
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.run_journal import RunJournal


@runtime_checkable
class Publication(Protocol):
    """What publishes the states of a training."""

    def begin(self, state: TrainState, maps: LiveMaps | None = None) -> None:
        """Is told of the state that the training goes on from, before a batch is read.

        Args:
            state: state.
            maps: maps of the training; None without dynamic ids.
        """
        ...

    def will_train(self, step: int, ids: Int[np.ndarray, "B C"]) -> None:
        """Is told of a batch when it is read, perhaps by another thread.

        Args:
            step: number of the step that trains on it, from 1 on.
            ids: its ids; those of tables with dynamic ids are rows already. Negative is absent.
        """
        ...

    def is_due(self, step: int) -> bool:
        """Whether there is something to do after a step; of several processes, one may know.

        Args:
            step: number of the step, which may not have been started yet.
        """
        ...

    def step_done(self, state: TrainState, step: int, due: bool) -> bool:
        """Is told of the state after a step; returns whether it has taken time.

        Args:
            state: state.
            step: number of the step.
            due: whether `is_due` was true in any process.
        """
        ...

    def end(self, state: TrainState) -> None:
        """Is told of the last state."""
        ...


class ToldBatches:
    """Batches of which a publication or a journal is told when they are read.

    Args:
        batches: batches by step, from 0 on.
        told: publication or journal.
    """

    def __init__(self, batches: Batches, told: Publication | RunJournal):
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches, self._told = batches, told

    def __getitem__(self, step: int) -> Any:
        """The batch of a step."""
        batch = self._batches[step]
        self._told.will_train(step + 1, np.asarray(batch.ids))
        return batch
