"""Numbers drawn with native keys are those of JAX's own keys."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_users import OPTIMIZED
from flax import nnx

from dlrm_jax.config import Config
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.logistic_regression import LogisticRegression
from dlrm_jax.native import threefry
from dlrm_jax.training.build import make_learner

DRAWS: dict[str, Callable[[jax.Array], Any]] = {
    "normal": lambda key: jax.random.normal(key, (301, 7)),
    "none": lambda key: jax.random.normal(key, (0, 7)),
    "one": jax.random.uniform,
    "many bits": lambda key: jax.random.bits(key, (70_001,)),
    "8 bits": lambda key: jax.random.bits(key, (33,), "uint8"),
    "16 bits": lambda key: jax.random.bits(key, (33,), "uint16"),
    "folded": lambda key: jax.random.bits(jax.random.fold_in(key, 2**32 - 1)),
    "split": lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 3)),
    "permutation": lambda key: jax.random.permutation(key, 50),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_have_the_bits_of_jax(name: str):
    for seed in (0, 2**31 + 5):
        found, expected = (DRAWS[name](key(seed)) for key in (threefry.key, jax.random.key))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_64_bits():
    with jax.enable_x64(True):
        draw = functools.partial(jax.random.normal, shape=(5,), dtype="float64")
        np.testing.assert_array_equal(draw(threefry.key(1)), draw(jax.random.key(1)))


def test_other_generators_are_not_replaced():
    assert threefry.is_default()
    with jax.default_prng_impl("rbg"):
        assert not threefry.is_default()
    with jax.threefry_partitionable(False):
        assert not threefry.is_default()


@pytest.mark.parametrize("mesh", ["1x1", pytest.param("2x4", marks=pytest.mark.thorough)])
def test_a_model_starts_from_the_same_numbers(mesh: str):
    """Its dropout has keys of JAX's own kind."""
    config = Config(
        table_rows=(30, 50), embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(8, 1), dropout=0.5
    )
    native, jaxs = (
        make_learner(dataclasses.replace(config, kernels=kernels), make_mesh(mesh))
        for kernels in ("native", "jax")
    )
    options: Any = {"static_argnums": 0, "compiler_options": OPTIMIZED}
    init, jaxs_init = (jax.jit(x.init_model, **options) for x in (native, jaxs))
    text = init.lower(7).as_text()
    assert "dlrm_jax_threefry" in text
    assert "shift_left" not in text
    found, expected = init(7), jaxs_init(7)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


class OfManyDraws(LogisticRegression):
    """Has initial values by functions that take JAX's own keys alone."""

    def __init__(self, *inputs: Any, rngs: nnx.Rngs):
        super().__init__(*inputs, rngs=rngs)
        counts = jax.random.poisson(rngs.params(), 3.0, (4,))
        keys = jnp.stack([rngs.params(), jax.random.key(1)])
        wide = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        same = jax.random.wrap_key_data(
            jax.random.key_data(rngs.params()), impl=jax.random.key_impl(rngs.params())
        )
        self.drawn = nnx.Param(counts + wide.sum(0) + jax.random.normal(same, (4,)))


def test_a_model_of_a_user_may_use_keys_as_it_likes():
    config = Config(
        model=f"{OfManyDraws.__module__}:OfManyDraws", table_rows=(30, 50), kernels="native"
    )
    params, _ = make_learner(config, make_mesh("1x1")).init_model(7)
    jaxs = make_learner(dataclasses.replace(config, kernels="jax"), make_mesh("1x1"))
    np.testing.assert_array_equal(params["drawn"], jaxs.init_model(7)[0]["drawn"])
