"""This project's own step and prediction on a 1x1 mesh, as users run them."""

from __future__ import annotations

import dataclasses
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


class Ours:
    """The project's train step or prediction with the weights of a problem, on one device."""

    def __init__(self, problem: Problem, mesh: Mesh):
        config = config_of(problem)
        learner = make_learner(config, mesh)
        numbers = {name: number for number, name in enumerate(config.table_names)}

        def given(table: Table) -> dict[str, np.ndarray]:
            return {"table": problem.table(numbers[table.name])}

        state = learner.init(config.seed, learner.collection.from_arrays(given, config.seed))
        self._state = dataclasses.replace(state, params=initial_params(problem, learner))
        self._batches = [learner.put(batch_of(problem, i)) for i in range(problem.batches)]
        self._train = make_train_step(learner) if problem.mode == "train" else None
        self._predict = make_predict(learner)

    def step(self, batch: int) -> jax.Array:
        """See `Contestant.step`."""
        if self._train is None:
            return self._predict(self._state, self._batches[batch]).block_until_ready()
        self._state, loss = self._train(self._state, self._batches[batch])
        return loss.block_until_ready()


def config_of(problem: Problem) -> Config:
    """The config whose step is that of the problem."""
    return Config(
        table_rows=problem.table_rows,
        bag_lengths=problem.bag_lengths,
        embedding_dim=problem.embedding_dim,
        dense_features=problem.dense_features,
        bottom_mlp=problem.bottom_mlp,
        top_mlp=problem.top_mlp,
        optimizer=problem.optimizer,
        learning_rate=problem.learning_rate,
        eps=0.0 if problem.optimizer == "sgd" else problem.eps,
        batch_size=problem.batch_size,
        evaluation_batch_size=problem.batch_size,
        zipf_exponent=problem.zipf_exponent,
    )


def batch_of(problem: Problem, number: int) -> Batch:
    """A batch on the host."""
    arrays = problem.batch(number)
    dense, ids, labels = map(np.array, arrays)
    return Batch(dense, ids, labels, np.ones(problem.batch_size, np.float32))


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
    serve(lambda problem: Ours(problem, start("1x1")), PACKAGES)
