"""JAX with table gradients as large as the tables, as in AlgoPerf's DLRM.

The dense part is this project's, so that only the tables differ: here `jax.grad` differentiates the
lookup, and the optimizer updates whole tables.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dlrm_jax.cli.start import start
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.dense import reference_adagrad
from experiments.benchmarks.peers.problem import Problem
from experiments.benchmarks.peers.workers.ours import PACKAGES, batch_of, config_of, initial_params
from experiments.benchmarks.peers.workers.protocol import serve


def rowwise_adagrad(learning_rate: float, eps: float) -> optax.GradientTransformation:
    """``a += mean(g²); w -= rate · g / (√a + eps)`` of whole tables, one accumulator a row."""

    def init(params: optax.Params) -> optax.OptState:
        return jax.tree.map(lambda table: jnp.zeros(len(table), table.dtype), params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        state = jax.tree.map(lambda a, g: a + jnp.mean(g**2, axis=1), state, updates)
        scaled = jax.tree.map(lambda g, a: g / (jnp.sqrt(a) + eps)[:, None], updates, state)
        return scaled, state

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


class JaxDense:
    """Tables and MLPs as one tree of parameters, on a mesh of one device."""

    def __init__(self, problem: Problem, mesh: Mesh):
        config = config_of(problem)
        learner = make_learner(config, mesh)
        names = config.table_names
        ends = np.cumsum(problem.bag_lengths)[:-1].tolist()
        rate = problem.learning_rate
        if problem.optimizer == "sgd":
            optimizer = optax.sgd(rate)
        else:
            optimizer = optax.partition(
                {
                    "tables": rowwise_adagrad(rate, problem.eps),
                    "mlps": reference_adagrad(rate, problem.eps),
                },
                {"tables": "tables", "mlps": "mlps"},
            )

        def logits(
            params: Any, dense: jax.Array, ids: jax.Array, training: bool = False
        ) -> jax.Array:
            bags = jnp.split(ids, ends, axis=1)
            pooled = {
                name: jnp.sum(
                    jnp.where(
                        (bag >= 0)[:, :, None],
                        jnp.take(params["tables"][name], jnp.maximum(bag, 0), axis=0),
                        0,
                    ),
                    axis=1,
                )
                for name, bag in zip(names, bags, strict=True)
            }
            return learner.model(params["mlps"], training=training)(dense, pooled)

        def loss_of(params: Any, dense: jax.Array, ids: jax.Array, labels: jax.Array) -> jax.Array:
            return jnp.mean(learner.loss(logits(params, dense, ids, training=True), labels))

        @functools.partial(jax.jit, donate_argnames=("params", "state"))
        def train(
            params: Any, state: Any, dense: jax.Array, ids: jax.Array, labels: jax.Array
        ) -> tuple[Any, Any, jax.Array]:
            loss, gradients = jax.value_and_grad(loss_of)(params, dense, ids, labels)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        self._mode = problem.mode
        self._train, self._predict = train, jax.jit(logits)
        self._params = {
            "tables": {name: jnp.array(problem.table(i)) for i, name in enumerate(names)},
            "mlps": initial_params(problem, learner),
        }
        self._optimizer_state = optimizer.init(self._params) if problem.mode == "train" else None
        self._batches = [learner.put(batch_of(problem, i)) for i in range(problem.batches)]

    def step(self, batch: int) -> jax.Array:
        """See `Contestant.step`."""
        dense, ids, labels, *_ = self._batches[batch]
        if self._mode == "infer":
            return self._predict(self._params, dense, ids).block_until_ready()
        self._params, self._optimizer_state, loss = self._train(
            self._params, self._optimizer_state, dense, ids, labels
        )
        return loss.block_until_ready()


if __name__ == "__main__":
    serve(lambda problem: JaxDense(problem, start("1x1")), PACKAGES)
