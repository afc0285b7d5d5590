"""Steps that benchmarks time: a state, and training or prediction steps from it."""

from __future__ import annotations

import jax

from dlrm_jax.config import Config
from dlrm_jax.training.config_data import generated_batches
from dlrm_jax.training.evaluation import read_behind
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_predict, make_train_step
from experiments.benchmarks import roofline
from experiments.benchmarks.timing import mean_seconds

BATCHES = 20
"""Several batches, so that the cache doesn't contain the rows of the next one."""


class Steps:
    """A state, and training or prediction steps from it, on batches kept in memory.

    Args:
        config: config of the batches and the state.
        learner: learner of the steps.
        train: whether to train; else steps predict.
    """

    def __init__(self, config: Config, learner: Learner, train: bool = True):
        self._batches = [learner.put(batch) for batch in generated_batches(config, BATCHES)]
        self._ahead = learner.backend.programs_ahead
        self._train = train
        self._train_step = make_train_step(learner)
        self._predict = make_predict(learner)
        self.state = learner.init(config.seed)

    def run(self, count: int) -> float:
        """Runs ``count`` steps and returns the mean seconds of one."""
        return mean_seconds(read_behind(map(self._step, range(count)), self._ahead), count)

    def _step(self, number: int) -> jax.Array:
        batch = self._batches[number % BATCHES]
        if not self._train:
            return self._predict(self.state, batch)
        self.state, loss = self._train_step(self.state, batch)
        return loss

    def work(self, learner: Learner) -> roofline.Work:
        """The work of one step."""
        function = self._train_step if self._train else self._predict
        return roofline.Work(
            roofline.matrix_flops(function, self.state, self._batches[0]),
            roofline.row_bytes(learner.collection, self._batches, self._train),
        )
