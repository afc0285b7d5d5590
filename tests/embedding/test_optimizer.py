import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import FORMULAS

from dlrm_jax.embedding import SGD, Adagrad, Adam, RowOptax, RowOptimizer, RowWiseAdagrad
from dlrm_jax.embedding.optimizer import OPTIMIZERS, check_rate, row_optimizer
from dlrm_jax.embedding.row_optimizer import slot_bytes, slot_shapes
from dlrm_jax.embedding.row_update import update_rows
from dlrm_jax.errors import UserError

R, D = 11, 5
RATE = 0.3


CASES = [pytest.param(row_optimizer(name, RATE), FORMULAS[name], id=name) for name in OPTIMIZERS]
NO_ROWS = [R, R + 1, 2 * R + 3, 2**31 - 1]


def apply(optimizer, weights, slots, rows, gradients, step):
    update = jax.jit(functools.partial(update_rows, optimizer))
    return update(weights, slots, jnp.asarray(rows, jnp.int32), gradients, jnp.asarray(step))


@pytest.mark.parametrize(("optimizer", "formula"), CASES)
def test_touched_rows_follow_the_formula_and_others_stay(optimizer, formula):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(R, D))
    with jax.enable_x64(True):
        slots = optimizer.initial_slots(jnp.zeros((R, D)))
        new, expected = jnp.asarray(weights), weights.copy()
        expected_slots = {name: np.zeros(slot.shape) for name, slot in slots.items()}
        for step in range(4):
            touched = rng.choice(R - 1, size=4, replace=False)  # never the last row
            gradients = rng.normal(size=(4, D))
            # "No row" between the rows, with gradients that would be seen.
            rows = np.insert(touched, [0, 1, 2, 4], NO_ROWS)
            given = np.insert(gradients, [0, 1, 2, 4], 1e3, axis=0)
            new, slots = apply(optimizer, new, slots, rows, jnp.asarray(given), step)

            for row, gradient in zip(touched, gradients, strict=True):
                formula.update(expected, expected_slots, row, gradient, RATE, formula.eps, step + 1)
            np.testing.assert_allclose(new, expected, rtol=1e-12)
            for name, slot in slots.items():
                np.testing.assert_allclose(slot, expected_slots[name], rtol=1e-12)
        np.testing.assert_array_equal(new[-1], weights[-1])  # row -1, to the bit
        assert all(not np.any(slot[-1]) for slot in slots.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_row_changes_nothing(name):
    optimizer = row_optimizer(name, RATE)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(R, D)), jnp.float32)
    slots = optimizer.initial_slots(weights.astype(jnp.float32))
    gradients = jnp.full((len(NO_ROWS), D), 7.0)
    new, new_slots = apply(optimizer, weights, slots, NO_ROWS, gradients, 3)
    np.testing.assert_array_equal(new, weights)
    for name, slot in slots.items():
        np.testing.assert_array_equal(new_slots[name], slot)


def test_sgd_adds_up_repeated_rows():
    weights = np.arange(R * D, dtype=np.float64).reshape(R, D)
    rows = [3, 3, R, 0, 3]
    gradients = np.random.default_rng(2).normal(size=(5, D))
    expected = weights.copy()
    for row, gradient in zip(rows, gradients, strict=True):
        if row < R:
            expected[row] -= RATE * gradient
    with jax.enable_x64(True):
        new, _ = apply(SGD(RATE), jnp.asarray(weights), {}, rows, jnp.asarray(gradients), 0)
        np.testing.assert_allclose(new, expected, rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_adams_first_step_is_as_long_as_the_rate(scale):
    gradients = jnp.asarray([[scale, -scale, 3 * scale]])
    slots = Adam(0.01).initial_slots(jnp.zeros((1, 3)))
    new, _ = apply(Adam(0.01), jnp.zeros((1, 3)), slots, [0], gradients, 0)
    np.testing.assert_allclose(new, [[-0.01, 0.01, -0.01]], rtol=1e-4)


@pytest.mark.parametrize("make", OPTIMIZERS.values())
def test_a_schedule_gives_the_rate_of_each_step(make):
    def schedule(count):
        return 0.5 / (count + 1.0)

    weights, gradients = jnp.zeros((R, D)), jnp.full((1, D), 2.0)
    for step in (0, 1, 4):
        slots = make(1.0).initial_slots(weights)
        new, _ = apply(make(schedule), weights, slots, [2], gradients, step)
        same, _ = apply(make(0.5 / (step + 1)), weights, slots, [2], gradients, step)
        np.testing.assert_allclose(new, same, rtol=1e-6)
        assert np.all(np.asarray(new)[2] != 0)


def test_state_of_bfloat16_tables_is_float32():
    for optimizer in (make(RATE) for make in OPTIMIZERS.values()):
        weights = jnp.ones((R, D), jnp.bfloat16)
        slots = optimizer.initial_slots(weights.astype(jnp.float32))
        new, new_slots = apply(optimizer, weights, slots, [1], jnp.ones((1, D)), 0)
        assert new.dtype == jnp.bfloat16
        for slot in new_slots.values():
            assert slot.dtype == jnp.float32
            assert np.all(np.asarray(slot)[1] > 0)


def test_the_state_has_a_float_per_row_or_per_element():
    shapes = {}
    for name, make in OPTIMIZERS.items():
        slots = slot_shapes(make(1.0), R, D, np.dtype("float32"))
        shapes[name] = {key: slot.shape for key, slot in slots.items()}
    assert (
        shapes.items()
        >= {
            "sgd": {},
            "adagrad": {"accumulator": (R, D)},
            "rowwise_adagrad": {"accumulator": (R,)},
            "adam": {"mean": (R, D), "variance": (R, D)},
        }.items()
    )
    assert slot_bytes(Adam(1.0), D, jnp.dtype("bfloat16")) == {"mean": 4 * D, "variance": 4 * D}
    shared = RowOptax(optax.adam(1.0))
    assert slot_bytes(shared, D, np.dtype("float32")) == {
        "0_count": 0,
        "0_mu": 4 * D,
        "0_nu": 4 * D,
    }


def test_optimizers_by_name():
    assert row_optimizer("sgd", 0.1) == SGD(0.1)
    assert row_optimizer("adagrad", 0.1) == Adagrad(0.1, eps=1e-10)
    assert row_optimizer("rowwise_adagrad", 0.1, 1e-8) == RowWiseAdagrad(0.1, eps=1e-8)
    assert row_optimizer("adam", 0.1, 1e-6) == Adam(0.1, eps=1e-6)
    for name in OPTIMIZERS:
        assert isinstance(row_optimizer(name, 0.1), RowOptimizer)
    with pytest.raises(UserError, match=r"expected one of sgd, .*, got 'lamb'"):
        row_optimizer("lamb", 0.1)
    with pytest.raises(UserError, match="eps: sgd has none, got 1e-08"):
        row_optimizer("sgd", 0.1, 1e-8)


def test_an_update_of_ones_own_is_not_linear_unless_it_says_so():
    class Decayed(SGD):
        def update_values(self, values, gradients, slots, step, row_mean):  # pyright: ignore
            return -0.1 * (gradients + values), slots

    class Scaling:
        def update(self, gradients, slots, step, row_mean):
            return -0.1 * gradients, slots

    class Scaled(Scaling, SGD):
        pass

    class Renamed(SGD):
        pass

    assert SGD.linear
    for made in (Decayed, Scaled):
        assert not made.linear  # otherwise a row decays once per occurrence
        assert made.native is None
    assert (Renamed.linear, Renamed.native) == (True, "columns")


@pytest.mark.parametrize("make", OPTIMIZERS.values())
@pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf], ids=repr)
def test_learning_rates_are_finite_and_not_negative(make, rate):
    message = rf"^learning_rate: expected a finite .* 0 or more, or a schedule, got {rate!r}"
    with pytest.raises(UserError, match=message):
        make(rate)


@pytest.mark.parametrize("rate", ["0.1", None, [0.1]])
def test_learning_rates_are_numbers_or_schedules(rate):
    with pytest.raises(UserError, match=r"^learning_rate: expected a finite number .*, got "):
        check_rate(rate)  # where annotations are checked at runtime, the checker is faster
    check_rate(np.float32(0.5))
    check_rate(optax.constant_schedule(0.0))


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (Adagrad, "eps", -1e-8),
        (RowWiseAdagrad, "initial_accumulator", np.nan),
        (Adam, "eps", np.nan),
        (Adam, "b1", 1.0),
        (Adam, "b2", -0.1),
    ],
)
def test_other_settings_of_optimizers_are_in_range(make, name, value):
    with pytest.raises(UserError, match=rf"^{name}: expected .*, got {value}"):
        make(0.1, **{name: value})
