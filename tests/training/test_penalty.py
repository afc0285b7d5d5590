"""L2 against the float64 oracle: each row once, touched rows or all, on every placement."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from drawn_batches import make_batches, oracle_arguments
from named_arrays import arrays_of, initial_arrays, oracle_arrays, start
from setups import Setup, train

from dlrm_jax.training.penalty import Penalty

STEPS = 6
TOUCHED = Penalty(tables=0.3, dense=0.2)
ALL = Penalty(tables=0.3, whole_tables=True, dense=0.2)


def thorough(setup: Setup, name: str):
    return pytest.param(setup, id=name, marks=pytest.mark.thorough)


@pytest.mark.parametrize(
    "setup",
    [
        # By default `test_living_tables.py` has a penalty of all rows.
        thorough(Setup("1x8", "adam", "columns", penalty=ALL), "all-columns"),
        pytest.param(
            Setup("2x4", "rowwise_adagrad", "columns", penalty=TOUCHED), id="touched-columns"
        ),
        thorough(
            Setup("2x4", "adam", "devices", penalty=TOUCHED, clip_norm=0.15), "touched-devices"
        ),
        thorough(Setup("2x4", "adam", penalty=TOUCHED, clip_norm=0.15), "touched-clipped"),
        thorough(Setup("4x2", "sgd", "devices", penalty=ALL, clip_norm=0.15), "all-devices"),
        thorough(
            Setup("2x4", "adam", "devices", penalty=ALL, accumulation_steps=2), "devices-adam"
        ),
        thorough(Setup("1x8", "rowwise_adagrad", "devices", penalty=TOUCHED), "devices-rowwise"),
        thorough(Setup("4x2", "sgd", penalty=TOUCHED, accumulation_steps=2), "micro-batches"),
        thorough(Setup("2x4", "sgd", penalty=ALL, clip_norm=0.15), "all-clipped"),
        thorough(Setup("8x1", "rowwise_adagrad", penalty=ALL), "all-rowwise"),
        thorough(Setup("1x1", "rowwise_adagrad", penalty=TOUCHED), "touched-1x1"),
    ],
)
def test_training_with_a_penalty_is_the_oracles(setup: Setup):
    with jax.enable_x64(True):
        learner, initial = setup.learner(), initial_arrays(setup)
        batches = make_batches(setup.dtype)
        alike = dataclasses.replace(setup, mesh="1x1", placed="rows", accumulation_steps=1)
        oracle = alike.oracle(initial)
        expected = [
            oracle.step(**oracle_arguments(batches[i % len(batches)])) for i in range(STEPS)
        ]
        state, losses = train(learner, start(learner, initial), batches, STEPS)
        np.testing.assert_allclose(losses, expected, rtol=1e-9)
        found, wanted = arrays_of(learner, state), oracle_arrays(oracle)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-9, err_msg=name)
    moved = np.any(found["items/table"] != initial["items/table"], axis=1)
    assert np.all(moved) if setup.penalty.whole_tables else not np.all(moved)
