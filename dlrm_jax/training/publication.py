"""What a training tells those who publish its states; `dlrm_jax.publishing` is one of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from dlrm_jax.data.batches import Batches
from dlrm_jax.training.learner import TrainState


@runtime_checkable
class Publication(Protocol):
    """What publishes the states of a training."""

    def begin(self, state: TrainState) -> None:
        """Is told of the state that the training goes on from, before a batch is read."""
        ...

    def batches(self, batches: Batches) -> Batches:
        """The batches of the training, which it may look at."""
        ...

    def step_done(self, state: TrainState, step: int) -> bool:
        """Is told of the state after a step; returns whether it has taken time."""
        ...

    def end(self, state: TrainState) -> None:
        """Is told of the last state."""
        ...
