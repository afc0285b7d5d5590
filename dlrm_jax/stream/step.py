"""A train step that also predicts its batch by the model before the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from dlrm_jax.data.batches import Batch
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.step import make_predict, make_train_step

PrequentialStep = Callable[[TrainState, Batch, Batch], tuple[TrainState, jax.Array, jax.Array]]
"""A function of a state, which is donated, and of a batch as `Learner.put_evaluation` and as
`Learner.put` place it. It gives the new state, the loss and the logits."""


def make_prequential_step(learner: Learner) -> PrequentialStep:
    """Makes the step.

    The logits are those of the step's own forward pass. A model with dropout or batch statistics
    is another one in training: its batch is predicted by a program of its own beforehand, which
    takes about a third of a step.
    """
    if learner.has_model_state:
        predict, train = make_predict(learner), make_train_step(learner)

        def predict_and_train(
            state: TrainState, predicted: Batch, trained: Batch
        ) -> tuple[TrainState, jax.Array, jax.Array]:
            logits = predict(state, predicted)
            if not learner.backend.programs_ahead:  # two programs at once can hang
                logits = jax.block_until_ready(logits)
            state, loss = train(state, trained)
            return state, loss, logits

        return predict_and_train
    both: Any = make_train_step(learner, with_logits=True)
    return lambda state, predicted, trained: both(state, trained)
