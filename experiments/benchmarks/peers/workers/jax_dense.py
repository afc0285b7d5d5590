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
from dlrm_jax.data.batches import Batch
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.dense import reference_adagrad
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.ranking_losses import RankingLoss
from experiments.benchmarks.peers.problem import Problem
from experiments.benchmarks.peers.workers.ours import (
    PACKAGES,
    JaxContestant,
    config_of,
    initial_params,
)
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


def pool(table: jax.Array, bags: jax.Array) -> jax.Array:
    """Sums of the rows of each bag, [B, d]."""
    rows = jnp.take(table, jnp.maximum(bags, 0), axis=0)
    return jnp.sum(jnp.where((bags >= 0)[:, :, None], rows, 0), axis=1)


def jax_dense(problem: Problem, mesh: Mesh) -> JaxContestant:
    """Tables and MLPs as one tree of parameters, on a mesh of one device."""
    config = config_of(problem)
    learner = make_learner(config, mesh)
    names = config.table_names
    ends = np.cumsum(problem.bag_lengths)[:-1].tolist()
    rate = problem.learning_rate
    if problem.optimizer == "sgd":
        optimizer = optax.sgd(rate)
    else:
        tables, mlps = (make(rate, problem.eps) for make in (rowwise_adagrad, reference_adagrad))
        labels = {"tables": "tables", "mlps": "mlps"}
        optimizer = optax.partition({"tables": tables, "mlps": mlps}, labels)

    def logits(params: Any, batch: Batch, training: bool) -> jax.Array:
        bags = jnp.split(batch.ids, ends, axis=1)
        tables = params["tables"]
        pooled = {name: pool(tables[name], own) for name, own in zip(names, bags, strict=True)}
        return learner.model(params["mlps"], training=training)(batch.dense, pooled)

    def loss_of(params: Any, batch: Batch) -> jax.Array:
        assert not isinstance(learner.loss, RankingLoss | MemberLoss)
        return jnp.mean(learner.loss(logits(params, batch, training=True), batch.labels))

    @functools.partial(jax.jit, donate_argnames="state")
    def train(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        params, optimizer_state = state
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    @jax.jit
    def predict(state: Any, batch: Batch) -> jax.Array:
        return logits(state[0], batch, training=False)

    params = {
        "tables": {name: jnp.array(problem.table(i)) for i, name in enumerate(names)},
        "mlps": initial_params(problem, learner),
    }
    optimizer_state = optimizer.init(params) if problem.mode == "train" else None
    return JaxContestant(problem, learner, (params, optimizer_state), train, predict)


if __name__ == "__main__":
    serve(lambda problem: jax_dense(problem, start("1x1")), PACKAGES)
