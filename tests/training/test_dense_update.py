"""Dense gradients and their update, split over devices: the same results, and a part on each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_batches import SAMPLES, make_batches
from named_arrays import initial_arrays, start
from setups import DENSE, Setup, step_of, train

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training import dense_update
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.compiled import compile_step, compiled_collectives
from dlrm_jax.training.learner import Learner, TrainState


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def split_learner(**changes: Any) -> Learner:
    return Setup("2x4", "adam", shard_dense_optimizer=True, **changes).learner()


def dense_of(state: TrainState) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves((state.params, state.optimizer))]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray], rounding: float = 1e-12):
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=rounding, atol=rounding)


OPTIMIZERS = {
    "adamw": optax.adamw(0.01),
    "lion": optax.lion(0.01),
    # These read whole parameters: their norms, their rows and columns, the norm of all.
    "lamb": optax.lamb(0.01),
    "lars": optax.lars(0.1),
    "adafactor": optax.adafactor(0.01, min_dim_size_to_factor=4),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=pytest.mark.thorough)
        if x in ("adamw", "lion", "lars", "adafactor")
        else x
        for x in OPTIMIZERS
    ],
)
def test_any_optimizer_gives_the_same(name: str):
    plain, split = (dense_of(updated(name, is_split)) for is_split in (False, True))
    assert_same(split, plain)


@pytest.mark.usefixtures("x64")
def test_large_gradients_are_added_up_without_a_copy(monkeypatch: pytest.MonkeyPatch):
    learner = Setup("2x4").learner()
    rng = np.random.default_rng(0)
    sums = [rng.normal(size=(2, 4, *shape)).astype(np.float32) for shape in [(), (), (3, 5), (7,)]]
    joined, _ = summed(learner, sums)
    monkeypatch.setattr(dense_update, "_LARGE", 7)
    apart, program = summed(learner, sums)
    for x, y in zip(apart, joined, strict=True):
        np.testing.assert_array_equal(x, y)
    assert compiled_collectives(program) == [("all-reduce", 4 * (1 + 1 + 15 + 7))]
    (shapes,) = re.findall(r"= \((.*)\) all-reduce\(", program.as_text() or "")
    assert sorted(re.findall(r"\[(\d+)\]", shapes)) == ["15", "2", "7"]


def summed(learner: Learner, sums: list[np.ndarray]) -> tuple[list[Any], jax.stages.Compiled]:
    """The sums over the devices of arrays [D, M, ...], and the program."""
    sharding = learner.axes.sharding(learner.axes.per_device)
    given = [jax.device_put(x, sharding) for x in sums]
    add = jax.jit(lambda a, b, *x: dense_update.sum_over_devices(learner, (a, b, x)))
    program = add.lower(*given).compile()
    return jax.tree.leaves(program(*given)), program


def updated(name: str, is_split: bool) -> TrainState:
    """A state without tables after three updates of drawn parameters with drawn gradients."""
    learner = Setup("2x4", shard_dense_optimizer=is_split).learner()
    learner.dense_optimizer = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    params, *grads = (
        jax.tree.map(lambda x: rng.normal(size=x.shape), learner.state_specs().params)
        for _ in range(4)
    )
    state = TrainState(0, params, learner.dense_optimizer.init(params), None)
    update = jax.jit(lambda state, grads: dense_update.update(learner, state, grads))
    for each in grads:
        params, optimizer = update(state, each)
        state = dataclasses.replace(state, params=params, optimizer=optimizer)
    return state


def test_a_device_has_its_part_of_the_state_and_all_parameters():
    learner = split_learner(dtype="float32")
    step: Any = step_of(learner)
    state, batches = learner.init(0), make_batches("float32")
    for batch in batches[:3]:
        state, loss = step(state, learner.put(batch))
        loss.block_until_ready()
    # A step's results are placed like `init`'s.
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    specs = learner.state_specs()
    moments = [
        (x, y) for x, y in zip(*map(optimizer_leaves, (state, specs)), strict=True) if x.ndim
    ]
    split = [x for x, y in moments if not y.sharding.is_fully_replicated]
    assert sum(x.size for x in split) > 0.9 * sum(x.size for x, _ in moments)
    for x in split:
        assert [part.data.size for part in x.addressable_shards] == 8 * [x.size // 8]
    assert all(x.is_fully_replicated for x in jax.tree.leaves(state.params))
    learner.check_copies(state)


def optimizer_leaves(state: TrainState) -> list[Any]:
    return jax.tree.leaves(state.optimizer)


def test_the_program_has_one_collective_each_way():
    """No gradient or state of a whole parameter is sent beside them."""
    compiled = compile_step(split_learner(dtype="float32"), 4 * SAMPLES, DENSE)
    kinds = [kind for kind, _ in compiled_collectives(compiled)]
    plain = compile_step(Setup("2x4", "adam", dtype="float32").learner(), 4 * SAMPLES, DENSE)
    before = [kind for kind, _ in compiled_collectives(plain)]
    assert sorted(kinds) == sorted([*before, "reduce-scatter", "all-gather"])
    memory: list[Any] = [x.memory_analysis() for x in (compiled, plain)]
    arguments = [x.argument_size_in_bytes for x in memory]
    # Two moments of 496 split numbers.
    assert arguments[1] - arguments[0] == 2 * 496 * 4 * 7 // 8


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("is_split", [False, True])
def test_narrow_gradients_are_rounded_before_the_sum_and_not_in_it(is_split: bool):
    learner = dataclasses.replace(
        Setup("2x4"), shard_dense_optimizer=is_split, dense_comm_dtype="bfloat16"
    ).learner()
    rng = np.random.default_rng(0)
    # The sum of the first is exact in bfloat16's parts alone: 256 + 7 would be lost, one by one.
    grads = {"w": 1 + rng.random((2, 4, 16, 3)), "b": rng.normal(size=(2, 4, 3))}
    grads["w"][:, :, 0, 0] = [[256, 1, 1, 1], [1, 1, 1, 1]]
    sums = (np.ones((2, 4)), np.full((2, 4), 1 / 3), grads)
    per_device = learner.axes.sharding(learner.axes.per_device)
    total, loss, found = jax.jit(lambda x: dense_update.sum_over_devices(learner, x))(
        jax.device_put(sums, per_device)
    )
    assert (float(total), float(loss)) == (8, pytest.approx(8 / 3, rel=1e-15))
    np.testing.assert_allclose(found["b"], grads["b"].sum((0, 1)), rtol=1e-14)  # isn't split
    wanted = rounded(grads["w"]).sum((0, 1))
    assert wanted[0, 0] == 263
    np.testing.assert_array_equal(found["w"], wanted if is_split else rounded(wanted))
    assert found["w"].is_fully_replicated == (not is_split)


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(jnp.bfloat16).astype(x.dtype)


@pytest.mark.thorough  # by default the sums are compared, above
def test_narrow_gradients_learn_alike():
    losses = []
    setup = Setup("2x4", "adam", dtype="float32", shard_dense_optimizer=True)
    for dtype in (None, "bfloat16"):
        learner = dataclasses.replace(setup, dense_comm_dtype=dtype).learner()
        state = start(learner, initial_arrays(setup))
        losses.append(train(learner, state, make_batches("float32"), 20)[1])
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, rtol=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("saved", "restored", "splits_later"), [("2x4", "8x1", False), ("1x1", "2x4", True)]
)
def test_a_checkpoint_is_read_by_either_form(
    saved: str, restored: str, splits_later: bool, tmp_path: Path
):
    setup = Setup(saved, "adam", dtype="float32", shard_dense_optimizer=not splits_later)
    before, batches = setup.learner(), make_batches("float32")
    state, _ = train(before, start(before, initial_arrays(setup)), batches, 3)
    Checkpoints(tmp_path, {}).save(before, state, {}, None)
    after = dataclasses.replace(setup, mesh=restored, shard_dense_optimizer=splits_later).learner()
    loaded, _ = Checkpoints(tmp_path, {}).restore_latest(after)
    assert_same(dense_of(loaded), dense_of(state), 0)
    for x, spec in zip(*map(optimizer_leaves, (loaded, after.state_specs())), strict=True):
        assert x.sharding == spec.sharding
    loaded, _ = train(after, loaded, batches, 2)
    state, _ = train(before, state, batches, 2)
    assert_same(dense_of(loaded), dense_of(state), 1e-5)


def test_the_settings_reach_the_learner():
    config = Config(shard_dense_optimizer=True, dense_comm_dtype="bfloat16")
    learner = make_learner(config, make_mesh("1x2"))
    assert (learner.shard_dense_optimizer, learner.dense_comm_dtype) == (True, "bfloat16")
    assert not make_learner(config, make_mesh("1x1")).shard_dense_optimizer  # nothing to split over


def test_gradients_travel_as_floats():
    with pytest.raises(UserError, match="dense_comm_dtype: expected a floating dtype, got int8"):
        Setup(dense_comm_dtype="int8").learner()
