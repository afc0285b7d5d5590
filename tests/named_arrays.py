"""Weights and optimizer state by name, the same for the library and for the oracle."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from oracle import Oracle
from setups import ROWS, Setup

from dlrm_jax.mesh import put_whole
from dlrm_jax.training.learner import Learner, TrainState


def initial_arrays(setup: Setup) -> dict[str, np.ndarray]:
    """Weights to start from, named as by `arrays_of`, the same for every mesh and optimizer."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}/table": rng.uniform(-0.3, 0.3, (rows, setup.width(name)))
        for name, rows in ROWS.items()
    }
    arrays |= dense_arrays(_drawn_params(dataclasses.replace(setup, mesh="1x1", optimizer="sgd")))
    return {name: array.astype(setup.dtype) for name, array in arrays.items()}


def start(learner: Learner, initial: dict[str, np.ndarray]) -> TrainState:
    """What `learner.init` gives, from given weights; compiling random numbers takes longer."""
    params = {mlp: {"layers": {0: {}, 1: {}}} for mlp in ("bottom", "top")}
    for mlp, layers in params.items():
        for i, layer in layers["layers"].items():
            for key in ("kernel", "bias"):
                layer[key] = put_whole(initial[f"{mlp}/{i}/{key}"], learner.replicated)
    shardings = jax.tree.map(lambda x: x.sharding, learner.state_specs().optimizer)
    init = jax.jit(learner.dense_optimizer.init, out_shardings=shardings)
    return TrainState(
        step=put_whole(np.zeros((), np.int32), learner.replicated),
        params=params,
        optimizer=init(params),
        embedding=learner.collection.from_arrays(
            lambda table: {"table": initial[f"{table.name}/table"]}, seed=0
        ),
    )


@functools.cache
def _drawn_params(setup: Setup) -> Any:
    return jax.tree.map(np.array, setup.learner().init_model(0)[0])


def dense_arrays(params: Any) -> dict[str, np.ndarray]:
    """Copies of the parameters of the dense model."""
    return {
        f"{mlp}/{i}/{key}": np.array(array)
        for mlp in ("bottom", "top")
        for i, layer in params[mlp]["layers"].items()
        for key, array in layer.items()
    }


def arrays_of(learner: Learner, state: TrainState) -> dict[str, np.ndarray]:
    """Copies of all tables, their optimizer state and the dense parameters."""
    tables = {
        f"{table.name}/{key}": np.array(array)
        for table, logical in learner.collection.to_arrays(state.embedding)
        for key, array in logical.items()
    }
    return tables | dense_arrays(state.params)


def oracle_arrays(oracle: Oracle) -> dict[str, np.ndarray]:
    """The same of the oracle, under the same names."""
    arrays = {f"{name}/table": table.weights for name, table in oracle.tables.items()}
    for table, slots in oracle.slots.items():
        arrays |= {f"{table}/{key}": array for key, array in slots.items()}
    for mlp, layers in (("bottom", oracle.bottom), ("top", oracle.top)):
        for i, (W, b) in enumerate(layers):
            arrays |= {f"{mlp}/{i}/kernel": W.T, f"{mlp}/{i}/bias": b}
    return arrays
