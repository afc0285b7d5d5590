"""Float32 at the batch sizes of real runs: chunks, hot rows with thousands of ids."""

from __future__ import annotations

from typing import Any, cast

import jax
import numpy as np
import pytest
from as_users import OPTIMIZED
from drawn_batches import SAMPLES, make_batches, oracle_arguments
from named_arrays import arrays_of, initial_arrays, oracle_arrays, start
from oracle import Oracle
from setups import Setup

from dlrm_jax.data.batches import Batch
from dlrm_jax.training.step import make_predict, make_train_step


def large_batch(size: int) -> Batch:
    parts = make_batches("float32", count=size // SAMPLES)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


# The oracle takes its time.
@pytest.mark.thorough
@pytest.mark.parametrize("size", [8192, 65_536])
def test_float32_is_the_float64_oracles(size: int):
    initial, batch = initial_arrays(Setup(dtype="float32")), large_batch(size)
    weights = {name: array.astype("f8") for name, array in initial.items()}
    gradients = Setup().oracle(weights).gradients(**oracle_arguments(batch))
    for mesh, optimizer in (("2x4", "sgd"), ("1x1", "rowwise_adagrad")):
        setup = Setup(mesh=mesh, optimizer=optimizer, dtype="float32")
        oracle = setup.oracle(weights)
        # They are those of all optimizers.
        oracle.gradients = lambda *_, **__: gradients  # pyright: ignore[reportAttributeAccessIssue]
        check(setup, initial, batch, oracle)


def check(setup: Setup, initial: dict[str, np.ndarray], batch: Batch, oracle: Oracle) -> None:
    learner = setup.learner()

    state = start(learner, initial)
    placed = learner.put(batch)
    predict, train_step = (
        make(learner).lower(state, placed).compile(compiler_options=OPTIMIZED)
        for make in cast(Any, (make_predict, make_train_step))
    )
    logits = np.asarray(predict(state, placed))
    some = oracle_arguments(jax.tree.map(lambda x: x[::16], batch))
    expected = oracle.forward(some["dense"], some["ids"], some["id_weights"])
    np.testing.assert_allclose(logits[::16], expected, rtol=1e-4, atol=1e-5)

    state, loss = train_step(state, placed)
    assert float(loss) == pytest.approx(oracle.step(**oracle_arguments(batch)), rel=2e-6)
    arrays = arrays_of(learner, state)
    moved = 0
    for name, array in oracle_arrays(oracle).items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=2e-6, err_msg=name)
        moved += name in initial and np.abs(array - initial[name]).max() > 1e-3
    assert moved > 5, "nothing was learnt that could differ"
