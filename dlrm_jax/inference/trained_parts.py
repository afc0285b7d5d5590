"""The parts of a trained model that a predictor has, and one of an artifact hasn't."""

from __future__ import annotations

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.inference.checkpoint_scorer import CheckpointScorer
from dlrm_jax.inference.scorer import Scorer
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.step import Predict


class TrainedParts:
    """The config, learner, state and program of a predictor's model.

    Each raises a `UserError` if the model is an artifact, which has none of them.
    """

    scorer: Scorer

    @property
    def config(self) -> Config:
        """The config of training."""
        return self._trained.config

    @property
    def learner(self) -> Learner:
        """The learner on the mesh of prediction."""
        return self._trained.learner

    @property
    def state(self) -> TrainState:
        """Parameters and tables; there is no optimizer state."""
        return self._trained.state

    @property
    def compiled(self) -> Predict:
        """The jitted prediction, which keeps a program for each batch size."""
        return self._trained.compiled

    @property
    def _trained(self) -> CheckpointScorer:
        if not isinstance(self.scorer, CheckpointScorer):
            raise UserError(
                f"expected a trained model, whose config and state are known, got the "
                f"{self.scorer}; load the run that it was exported from"
            )
        return self.scorer
