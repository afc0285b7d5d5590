"""Training, step by step, against the float64 oracle: same losses, tables, optimizer state."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracle import Oracle, global_norm
from setups import (
    MESHES,
    Setup,
    arrays_of,
    make_batches,
    oracle_arguments,
    oracle_arrays,
    start,
    train,
)

from dlrm_jax.embedding import gradient
from dlrm_jax.training.step import make_train_step

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam")
STEPS = 50


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(
            actual[name], array, rtol=tolerance, atol=tolerance, err_msg=name
        )


def check_training(
    setup: Setup,
    *,
    weighted: bool = True,
    steps: int = STEPS,
    tolerance: float = 1e-9,
    draw: bool = False,
) -> Oracle:
    """Trains both sides from the same start, compares them, and returns the oracle."""
    learner, batches = setup.learner(), make_batches(setup.dtype, weighted=weighted)
    state = learner.init(seed=0) if draw else start(setup, learner)
    initial = arrays_of(learner, state)
    assert all(array.dtype == setup.dtype for array in initial.values())
    oracle = setup.oracle(initial)

    state, losses = train(learner, state, batches, steps)
    inputs = [oracle_arguments(batch) for batch in batches]
    expected = [oracle.step(**inputs[i % len(inputs)]) for i in range(steps)]

    assert np.mean(expected[-5:]) < 0.8 * np.mean(expected[:5]), "too little was learnt to tell"
    np.testing.assert_allclose(losses, expected, rtol=tolerance, atol=tolerance)
    assert_same(arrays_of(learner, state), oracle_arrays(oracle), tolerance)
    return oracle


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mesh", MESHES)
def test_float64_training_is_the_oracle_s(mesh, optimizer):
    check_training(Setup(mesh=mesh, optimizer=optimizer))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(Setup(optimizer="adagrad", interaction="cat"), id="tables of several widths"),
        pytest.param(Setup(optimizer="sgd", self_interaction=True), id="self interaction"),
        pytest.param(Setup(optimizer="adam", loss="mse"), id="mse"),
        pytest.param(Setup(optimizer="adagrad", class_weights=(0.4, 1.7)), id="class weights"),
        pytest.param(Setup(optimizer="sgd", schedule=(5, 20, 20)), id="schedule sgd"),
        pytest.param(Setup(optimizer="adam", schedule=(5, 20, 20)), id="schedule adam"),
    ],
)
def test_each_option(setup):
    check_training(setup)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_without_id_weights(optimizer):
    check_training(Setup(optimizer=optimizer), weighted=False)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_clipping_by_the_global_norm(optimizer, accumulation_steps):
    setup = Setup(optimizer=optimizer, clip_norm=0.2, accumulation_steps=accumulation_steps)
    oracle = check_training(setup)
    norms = [
        global_norm(oracle.gradients(**oracle_arguments(batch))[1])
        for batch in make_batches(setup.dtype)
    ]
    assert min(norms) > setup.clip_norm, "clips in the last steps too"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accumulation_is_one_step_of_the_whole_batch(optimizer):
    check_training(Setup(optimizer=optimizer, accumulation_steps=4))


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
@pytest.mark.parametrize("mesh", ["2x4", "1x8"])
def test_float32(mesh, optimizer):
    check_training(Setup(mesh=mesh, optimizer=optimizer, dtype="float32"), tolerance=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_the_problem_takes_every_way_of_summing_gradients(mesh, optimizer, monkeypatch):
    ways = set()
    aggregate = gradient.aggregate

    def spy(slab, occurrences, marker, copies):
        ids = sum(rows.size for rows, _, _ in occurrences) * copies
        large = "repeated" if marker is None else "merged"
        ways.add((slab.sharded, "dense" if slab.rows <= ids else large))
        return aggregate(slab, occurrences, marker, copies)

    monkeypatch.setattr(gradient, "aggregate", spy)
    setup = Setup(mesh=mesh, optimizer=optimizer)
    learner = setup.learner()
    batch = learner.put(make_batches("float64")[0])
    make_train_step(learner).lower(start(setup, learner), batch)
    # Of the large tables, items have the setup's optimizer and pages the other of the two.
    items, pages = ("repeated", "merged") if optimizer == "sgd" else ("merged", "repeated")
    assert ways == {(True, "dense"), (True, items), (False, "dense"), (False, pages)}


def test_the_problem_has_every_placement():
    plan = Setup(dtype="float32").learner().collection.plan
    placements = {plan.placement(piece.table) for piece in plan.pieces}
    assert placements == {"replicated", "table_wise", "row_wise"}


@pytest.mark.usefixtures("x64")
def test_the_comparison_notices_a_single_entry():
    setup = Setup(mesh="1x1", optimizer="adam")
    learner = setup.learner()
    arrays = arrays_of(learner, start(setup, learner))
    assert_same(arrays, oracle_arrays(setup.oracle(arrays)), 1e-9)
    for name, array in arrays.items():
        wrong = array.copy()
        wrong.flat[-1] += 1e-6
        with pytest.raises(AssertionError, match=name):
            assert_same(arrays | {name: wrong}, arrays, 1e-9)


@pytest.mark.usefixtures("x64")
def test_the_comparison_notices_a_wrong_learning_rate():
    """The whole check fails for a step that differs a little from what the oracle is told."""

    class Slower(Setup):
        def oracle(self, initial):
            return Setup(schedule=(2, 0, 0)).oracle(initial)

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_training(Slower(mesh="1x1"))


@pytest.mark.usefixtures("x64")
def test_training_starts_from_the_values_that_the_learner_draws():
    """All other cases start from numbers of the test's own."""
    check_training(Setup(optimizer="adagrad"), draw=True, steps=30)
