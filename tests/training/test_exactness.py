"""Training, step by step, against the float64 oracle: same losses, tables, optimizer state."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from drawn_batches import make_batches, oracle_arguments
from named_arrays import arrays_of, initial_arrays, oracle_arrays, start
from oracle import Oracle, global_norm
from setups import MESHES, OTHER, Setup, train

from dlrm_jax import backend
from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import row_gradients
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.embedding.plan import PLACEMENTS
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.penalty import Penalty
from dlrm_jax.training.step import make_predict

MESHES_AND_OPTIMIZERS = [
    (MESHES[i % len(MESHES)], list(OPTIMIZERS)[i % len(OPTIMIZERS)])
    for i in range(max(len(MESHES), len(OPTIMIZERS)))
]
# Others are among the options and in `test_processes.py`.
OFTEN = [("1x8", "sgd")]
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


def check_training(setup: Setup, *, weighted: bool = True, tolerance: float = 1e-9) -> None:
    """Trains both sides from the same weights, and compares them."""
    learner, initial = setup.learner(), initial_arrays(setup)
    if setup.clip_norm:
        batches = make_batches(setup.dtype, weighted=weighted, labels=len(setup.label_weights))
        _, gradients = setup.oracle(initial).gradients(**oracle_arguments(batches[0]))
        assert global_norm(gradients) > 2 * setup.clip_norm, "nothing to clip"
    compare(setup, learner, start(learner, initial), None, weighted, tolerance)


def compare(
    setup: Setup,
    learner: Learner,
    state: TrainState,
    initial: dict[str, np.ndarray] | None = None,
    weighted: bool = True,
    tolerance: float = 1e-9,
    batch_dtype: str | None = None,
) -> None:
    """`initial`: that of the state, if it isn't `initial_arrays`."""
    labels = len(setup.label_weights)
    batches = make_batches(batch_dtype or setup.dtype, weighted=weighted, labels=labels)
    if initial is None:
        # To the oracle, they are the same.
        alike = dataclasses.replace(
            setup, mesh="1x1", placed="rows", accumulation_steps=1, shard_dense_optimizer=False
        )
        oracle, expected = trained_oracle(alike, batch_dtype or setup.dtype, weighted)
    else:
        oracle, expected = train_oracle(setup.oracle(initial), batches)
    state, losses = train(learner, state, batches, STEPS)
    assert np.mean(expected[-5:]) < 0.8 * np.mean(expected[:5]), "too little learnt to compare"
    np.testing.assert_allclose(losses, expected, rtol=tolerance, atol=tolerance)
    arrays = arrays_of(learner, state)
    assert {array.dtype for array in arrays.values()} == {np.dtype(setup.dtype)}
    assert_same(arrays, oracle_arrays(oracle), tolerance)


@functools.cache
def trained_oracle(setup: Setup, batch_dtype: str, weighted: bool) -> tuple[Oracle, list[float]]:
    batches = make_batches(batch_dtype, weighted=weighted, labels=len(setup.label_weights))
    return train_oracle(setup.oracle(initial_arrays(setup)), batches)


def train_oracle(oracle: Oracle, batches: list[Batch]) -> tuple[Oracle, list[float]]:
    """It, and the loss of each step."""
    inputs = [oracle_arguments(batch) for batch in batches]
    return oracle, [oracle.step(**inputs[i % len(inputs)]) for i in range(STEPS)]


@pytest.fixture
def ways_taken(monkeypatch):
    """How the gradients of slabs were summed: (whether the slab is sharded, the way)."""
    ways = set()
    coalesce = row_gradients.coalesce

    def spy(slabs, occurrences, axes, sum_duplicates, *options):
        for slab in slabs:
            copies = axes.groups * (1 if slab.sharded else axes.shards)
            ids = sum(rows.size for rows, _, _ in occurrences[slab.name]) * copies
            large = "merged" if slab.needs_sums(sum_duplicates) else "repeated"
            ways.add((slab.sharded, "dense" if slab.rows <= ids else large))
        return coalesce(slabs, occurrences, axes, sum_duplicates, *options)

    monkeypatch.setattr(row_gradients, "coalesce", spy)
    return ways


def meshes_and_optimizers() -> list[Any]:
    """All pairs. By default a few of them: other optimizers and meshes are among the options."""
    return [
        pytest.param(*pair, marks=() if pair in OFTEN else pytest.mark.thorough)
        for pair in itertools.product(MESHES, OPTIMIZERS)
    ]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("mesh", "optimizer"), meshes_and_optimizers())
def test_float64_training_is_the_oracles(mesh, optimizer, ways_taken):
    check_training(Setup(mesh=mesh, optimizer=optimizer))
    # Of the large tables, items have this optimizer and pages another.
    # Only the gradients of SGD needn't be summed before the update.
    items, pages = (
        "repeated" if name == "sgd" else "merged" for name in (optimizer, OTHER[optimizer])
    )
    if backend.CPU.packed_from is None:  # otherwise all tables have 128 rows or more
        assert ways_taken == {(True, "dense"), (True, items), (False, "dense"), (False, pages)}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("mesh", "optimizer", "placed"),
    [
        # By default the options below have them; `test_processes.py --thorough` has all pairs.
        pytest.param("2x4", "rowwise_adagrad", "devices", marks=pytest.mark.thorough),
        *(
            pytest.param(*pair, placed, marks=pytest.mark.thorough)
            for placed in ("columns", "devices")
            for pair in MESHES_AND_OPTIMIZERS
        ),
    ],
)
def test_float64_training_with_other_placements_is_the_oracles(mesh, optimizer, placed):
    check_training(Setup(mesh=mesh, optimizer=optimizer, placed=placed))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(
            Setup(optimizer="adagrad", interaction="cat"),
            id="tables-of-several-widths",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            Setup(
                optimizer="rowwise_adagrad", placed="columns", clip_norm=0.15, accumulation_steps=2
            ),
            id="split-columns-clipped",
        ),
        pytest.param(
            Setup(optimizer="adagrad", placed="devices", clip_norm=0.15),
            id="fully-sharded-clipped",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            Setup(optimizer="adagrad", placed="devices", clip_norm=0.15, accumulation_steps=2),
            id="fully-sharded-micro-batches",
        ),
        pytest.param(
            Setup(optimizer="sgd", self_interaction=True, loss="mse"),
            id="self-and-mse",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            Setup(optimizer="adam", class_weights=(0.4, 1.7), schedule=(5, 20, 20)),
            id="class-weights-and-schedule",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_options(setup):
    check_training(setup)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "setup",
    [
        # By default below, with data in float32.
        pytest.param(
            Setup("2x4", "adam", clip_norm=0.15, accumulation_steps=2), marks=pytest.mark.thorough
        ),
        pytest.param(
            Setup("1x8", "adagrad", penalty=Penalty(0.01, False, 0.01)),
            marks=pytest.mark.thorough,
        ),
        *(
            pytest.param(Setup(*pair), marks=pytest.mark.thorough)
            for pair in itertools.product(MESHES, ("sgd", "adagrad", "adam"))
        ),
    ],
)
def test_with_the_dense_optimizer_split_over_devices(setup):
    check_training(dataclasses.replace(setup, shard_dense_optimizer=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("is_split", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_float32_data_are_no_limit(is_split: bool):
    """As the loader gives them; sums and their scale have the model's precision."""
    setup = Setup(
        optimizer="adam", accumulation_steps=2, clip_norm=0.15, shard_dense_optimizer=is_split
    )
    learner = setup.learner()
    compare(setup, learner, start(learner, initial_arrays(setup)), batch_dtype="float32")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("setup", "weighted"),
    [
        (Setup("4x2", "adam", placed="columns", clip_norm=0.15, accumulation_steps=2), False),
        pytest.param(Setup("1x1", "adagrad", clip_norm=0.15), True, marks=pytest.mark.thorough),
        pytest.param(Setup("2x4", "adagrad", clip_norm=0.15), True, marks=pytest.mark.thorough),
    ],
    ids=["without-id-weights", "1x1", "2x4"],
)
def test_chunk_by_chunk(setup: Setup, weighted: bool, monkeypatch: pytest.MonkeyPatch):
    """The dense model works through half of a device's samples of a micro-batch at a time."""
    half = 2 // setup.accumulation_steps
    small = dataclasses.replace(backend.CPU, dense_chunk=half, prediction_chunk=2)
    monkeypatch.setattr(backend, "CPU", small)
    check_training(setup, weighted=weighted)
    check_predictions(setup.mesh)


@pytest.mark.thorough  # by default chunk by chunk, above
@pytest.mark.usefixtures("x64")
def test_without_id_weights():
    setup = Setup("4x2", "adam", placed="columns", clip_norm=0.15, accumulation_steps=2)
    check_training(setup, weighted=False)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_from_the_values_that_the_learner_draws():
    """The other cases start from weights of their own."""
    setup = Setup(optimizer="adagrad")
    learner = setup.learner()
    state = learner.init(seed=0)
    initial = {k: v for k, v in arrays_of(learner, state).items() if "accumulator" not in k}
    compare(setup, learner, state, initial)


@pytest.mark.thorough  # by default with other options, above
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulation_is_one_step_of_the_whole_batch(optimizer):
    check_training(Setup(optimizer=optimizer, accumulation_steps=4))


@pytest.mark.thorough  # by default with other options, above
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("optimizer", "accumulation_steps"), [("sgd", 1), ("adagrad", 4)])
def test_clipping_by_the_global_norm(optimizer, accumulation_steps):
    setup = Setup(optimizer=optimizer, clip_norm=0.15, accumulation_steps=accumulation_steps)
    check_training(setup)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "setup",
    [
        Setup("2x4", "adagrad", accumulation_steps=4, clip_norm=0.1, label_weights=(1.0, 0.5)),
        *(
            pytest.param(setup, marks=pytest.mark.thorough)
            for setup in (
                Setup("1x1", "adam", loss="mse", label_weights=(1.0, 2.0)),
                Setup("8x1", "sgd", class_weights=(0.4, 1.7), label_weights=(0.3, 1.0, 0.5)),
                Setup("1x8", "rowwise_adagrad", accumulation_steps=2, label_weights=(1.0, 2.0)),
            )
        ),
    ],
    ids=lambda setup: f"{setup.mesh}-{setup.optimizer}",
)
def test_several_labels_some_of_them_missing(setup):
    check_training(setup)
    check_predictions(setup.mesh, setup.label_weights)


@pytest.mark.thorough  # by default with several labels, and chunk by chunk
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_predictions_are_the_oracles(mesh):
    check_predictions(mesh)


def check_predictions(mesh: str, label_weights: tuple[float, ...] = (1.0,)):
    setup, batch = Setup(mesh=mesh, label_weights=label_weights), make_batches("float64")[0]
    learner, initial = setup.learner(), initial_arrays(setup)
    state = start(learner, initial)
    logits = make_predict(learner)(state, learner.put_evaluation(batch))
    inputs = oracle_arguments(batch)
    expected = setup.oracle(initial).forward(inputs["dense"], inputs["ids"], inputs["id_weights"])
    np.testing.assert_allclose(np.array(logits), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("mesh", "optimizer"),
    [
        ("2x4", "rowwise_adagrad"),
        pytest.param("1x8", "sgd", marks=pytest.mark.thorough),
        pytest.param("2x4", "sgd", marks=pytest.mark.thorough),
        pytest.param("1x8", "rowwise_adagrad", marks=pytest.mark.thorough),
    ],
)
def test_float32(mesh, optimizer):
    check_training(Setup(mesh=mesh, optimizer=optimizer, dtype="float32"), tolerance=1e-5)


def test_the_problem_has_every_placement():
    placements = set()
    for placed in ("rows", "columns", "devices"):
        plan = Setup(dtype="float32", placed=placed).learner().collection.plan
        placements |= {plan.placement(piece.table) for piece in plan.pieces}
    assert placements == set(PLACEMENTS)


@pytest.mark.usefixtures("x64")
def test_the_comparison_notices_a_single_entry():
    setup = Setup(optimizer="adam")
    initial = initial_arrays(setup)
    arrays = oracle_arrays(setup.oracle(initial))
    assert_same(dict(arrays), arrays, 1e-9)
    for name, array in arrays.items():
        wrong = array.copy()
        wrong.flat[-1] += 1e-6
        with pytest.raises(AssertionError, match=name):
            assert_same(arrays | {name: wrong}, arrays, 1e-9)


@pytest.mark.thorough
@pytest.mark.usefixtures("x64")
def test_the_comparison_notices_a_wrong_learning_rate():
    setup = Setup(mesh="1x1", schedule=(2, 0, 0))  # half the rate, in the first step only
    learner = setup.learner()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(Setup(), learner, start(learner, initial_arrays(setup)))
