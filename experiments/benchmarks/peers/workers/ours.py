"""This project's own step and prediction on a 1x1 mesh, as users run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import Table
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_predict, make_train_step
from experiments.benchmarks.peers.problem import Problem
from experiments.benchmarks.peers.workers.protocol import serve

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class JaxContestant:
    """A state, and jitted functions of a state and a batch: train step and prediction."""

    def __init__(
        self,
        problem: Problem,
        learner: Learner,
        state: Any,
        train: Callable[[Any, Batch], tuple[Any, jax.Array]],
        predict: Callable[[Any, Batch], jax.Array],
    ):
        self._state, self._train, self._predict = state, train, predict
        self._training = problem.mode == "train"
        self._batches = []
        for number in range(problem.batches):
            arrays = map(np.array, problem.batch(number))
            batch = Batch(*arrays, sample_weights=np.ones(problem.batch_size, np.float32))
            self._batches.append(learner.put(batch))

    def step(self, batch: int) -> jax.Array:
        """See `Contestant.step`."""
        if not self._training:
            return self._predict(self._state, self._batches[batch]).block_until_ready()
        self._state, loss = self._train(self._state, self._batches[batch])
        return loss.block_until_ready()


def ours(problem: Problem, mesh: Mesh) -> JaxContestant:
    """The project's train step or prediction with the weights of a problem, on one device."""
    config = config_of(problem)
    learner = make_learner(config, mesh)
    numbers = {name: number for number, name in enumerate(config.table_names)}

    def given(table: Table) -> dict[str, np.ndarray]:
        return {"table": problem.table(numbers[table.name])}

    state = learner.init(config.seed, learner.collection.from_arrays(given, config.seed))
    state = dataclasses.replace(state, params=initial_params(problem, learner))
    return JaxContestant(problem, learner, state, make_train_step(learner), make_predict(learner))


def config_of(problem: Problem) -> Config:
    """The config whose step is that of the problem."""
    return Config(
        table_rows=problem.table_rows,
        bag_lengths=problem.bag_lengths,
        embedding_dim=problem.embedding_dim,
        dense_features=problem.dense_features,
        bottom_mlp=problem.bottom_mlp,
        top_mlp=problem.top_mlp,
        compute_dtype=problem.precision,
        optimizer=problem.optimizer,
        learning_rate=problem.learning_rate,
        eps=0.0 if problem.optimizer == "sgd" else problem.eps,
        batch_size=problem.batch_size,
        evaluation_batch_size=problem.batch_size,
        zipf_exponent=problem.zipf_exponent,
    )


def initial_params(problem: Problem, learner: Learner) -> Any:
    """The problem's weights as the learner's parameters."""
    params = {
        mlp: {
            "layers": {
                i: {"kernel": weight.T, "bias": bias}
                for i, (weight, bias) in enumerate(problem.layers(mlp))
            }
        }
        for mlp in ("bottom", "top")
    }
    return jax.device_put(params, learner.replicated)


if __name__ == "__main__":
    serve(lambda problem: ours(problem, start("1x1")), PACKAGES)
