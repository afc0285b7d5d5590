from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.training.dense import dense_optimizer, reference_adagrad
from dlrm_jax.training.schedule import WarmupDecay

RATE = WarmupDecay(0.5)


def steps(optimizer, gradients):
    """The parameters after each gradient, from ones."""
    params: Any = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        yield np.asarray(params["w"])


def gradients(count=4):
    return np.random.default_rng(0).normal(size=(count, 3))


@pytest.mark.parametrize("eps", [1e-10, 0.3])
def test_reference_adagrad_is_the_references_formula(eps):
    w, a = np.ones(3), np.zeros(3)
    got = steps(reference_adagrad(0.5, eps), gradients())
    for g, params in zip(gradients(), got, strict=True):
        a += g**2
        w -= 0.5 * g / (np.sqrt(a) + eps)
        np.testing.assert_allclose(params, w, rtol=1e-5)


def test_reference_adagrad_follows_a_schedule():
    schedule = WarmupDecay(1.0, warmup=4)
    w, a = np.ones(3), np.zeros(3)
    for s, (g, params) in enumerate(
        zip(gradients(), steps(reference_adagrad(schedule), gradients()), strict=True), start=1
    ):
        a += g**2
        w -= s / 4 * g / np.sqrt(a)
        np.testing.assert_allclose(params, w, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "sparse", "expected"),
    [
        ("same", "sgd", optax.sgd(0.5)),
        ("same", "adagrad", reference_adagrad(0.5)),
        ("same", "rowwise_adagrad", reference_adagrad(0.5)),
        ("same", "adam", optax.adam(0.5)),
        ("adagrad", "sgd", reference_adagrad(0.5)),
        ("sgd", "adam", optax.sgd(0.5)),
        ("adamw", "sgd", optax.adamw(0.5)),
        ("nadamw", "sgd", optax.nadamw(0.5)),
        ("lamb", "sgd", optax.lamb(0.5)),
    ],
)
def test_optimizers_by_name(name, sparse, expected):
    got = steps(dense_optimizer(name, sparse, RATE, None), gradients(2))
    for params, want in zip(got, steps(expected, gradients(2)), strict=True):
        np.testing.assert_allclose(params, want, rtol=1e-5)


def test_eps_goes_to_those_that_have_one():
    for name, sparse in (("adam", "sgd"), ("same", "rowwise_adagrad")):
        got = steps(dense_optimizer(name, sparse, RATE, 0.2), gradients(2))
        make = optax.adam if name == "adam" else reference_adagrad
        want = steps(make(0.5, eps=0.2), gradients(2))
        np.testing.assert_allclose(list(got), list(want), rtol=1e-5)
    # SGD has none; the eps is the tables' then.
    plain = steps(dense_optimizer("sgd", "adagrad", RATE, 0.2), gradients(2))
    np.testing.assert_allclose(list(plain), list(steps(optax.sgd(0.5), gradients(2))), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["adamm", "", "chain", "schedules", "scale_by_adam", "__doc__", "Schedule"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="dense_optimizer: expected same, adagrad") as raised:
        dense_optimizer(name, "sgd", RATE, None)
    assert repr(name) in str(raised.value)


def test_same_stands_for_a_name_that_optax_lacks():
    with pytest.raises(UserError, match="dense_optimizer: same stands for 'decayed_adagrad'"):
        dense_optimizer("same", "decayed_adagrad", RATE, None)


def test_an_eps_that_the_optimizer_lacks_is_refused():
    with pytest.raises(UserError, match="eps: the dense optimizer lion has none"):
        dense_optimizer("lion", "adam", RATE, 1e-8)


@pytest.mark.filterwarnings("ignore:.optimistic_adam. is deprecated")
@pytest.mark.parametrize("name", ["sm3", "rprop", "optimistic_adam"])
def test_an_optimizer_that_takes_no_schedule_is_refused(name):
    with pytest.raises(UserError, match=rf"takes a schedule of learning rates.*got '{name}'"):
        dense_optimizer(name, "adam", RATE, None)


def test_noise_has_a_key():
    """optax warns of an optimizer without, and warnings are errors here."""
    first, second = steps(dense_optimizer("noisy_sgd", "sgd", RATE, None), np.zeros((2, 3)))
    assert np.all(first != 1)
    assert np.all(second != first)


def test_the_state_is_made_of_arrays():
    state = reference_adagrad(0.1).init({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state))
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(3,), (2, 3)]
