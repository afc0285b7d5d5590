"""HSTU's attention by native kernels against XLA's form in float64, which NumPy checks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlrm_jax.attention import pointwise_kernels, pointwise_native
from dlrm_jax.attention.attention_bias import Bias, time_bucket
from dlrm_jax.attention.jagged import sequences_of
from dlrm_jax.attention.pointwise_attention import pointwise_attention
from dlrm_jax.native import pointwise_attention as native


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def drawn(lengths, heads, width, value_width, distances, times):
    """Queries, keys, values, bias, cotangent, and the sequences with 1 to 64 tokens of filling."""
    rng, tokens = np.random.default_rng(sum(lengths) + width), sum(lengths) // 64 * 64 + 64

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), "float32")

    query, key = normal(tokens, heads, width), normal(tokens, heads, width)
    value, cotangent = normal(tokens, heads, value_width), normal(tokens, heads, value_width)
    seconds = rng.integers(0, 10**6, (2, tokens))
    if times == "ascending":  # buckets of many keys at once
        seconds = np.sort(seconds.reshape(-1)).reshape(tokens, 2).T
    seconds = jnp.asarray(seconds, "int32") if times else (None, None)
    sequences = sequences_of(jnp.asarray(lengths, "int32"), tokens, *seconds)
    bias = Bias(normal(distances), normal(129) if times else None)
    return (query, key, value, bias), cotangent, sequences


@example(lengths=[0, 300, 70, 1, 0, 48, 129], heads=2, width=33, distances=50, times="ascending")
@example(lengths=[300], heads=1, width=1, distances=1000, times="any")
@example(lengths=[], heads=1, width=5, distances=1, times="any")
@given(
    lengths=st.lists(st.integers(0, 150), max_size=4),
    heads=st.integers(1, 3),
    width=st.integers(1, 70),
    distances=st.integers(1, 200),
    times=st.sampled_from(["", "any", "ascending"]),
)
@settings(max_examples=4, deadline=None)
def test_results_and_cotangents(lengths, heads, width, distances, times):
    given, cotangent, sequences = drawn(lengths, heads, width, 71 - width, distances, times)
    assert pointwise_kernels.kernels_for(jnp.dtype("float32")) is pointwise_native
    wide, wide_cotangent = jax.tree.map(lambda x: x.astype("float64"), (given, cotangent))

    @jax.jit
    def both(given, cotangent):
        out, back = jax.vjp(lambda *x: pointwise_attention(*x, sequences, 0.01), *given)
        return out, back(cotangent)

    found, wanted = both(given, cotangent), both(wide, wide_cotangent)
    for own, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert own.dtype == jnp.float32
        largest = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=3e-6 * largest)


def test_bfloat16_is_that_of_rounded_inputs():
    (*arrays, bias), _, sequences = drawn([70, 100], 2, 8, 8, 50, "any")
    short = [x.astype("bfloat16") for x in arrays]
    found: Any = pointwise_attention(*short, bias, sequences, 0.01)
    assert found.dtype == jnp.bfloat16
    wide, wide_bias = jax.tree.map(lambda x: x.astype("float64"), (short, bias))
    exact: Any = pointwise_attention(*wide, wide_bias, sequences, 0.01)
    np.testing.assert_allclose(found.astype("float64"), exact, rtol=0.01, atol=1e-4)


def test_buckets_are_those_of_the_formula():
    """One query and one key a sequence, and a bias that is the number of its bucket."""
    powers = np.arange(0, 31)
    seconds = np.unique(np.concatenate([[0], 2**powers, 2**powers - 1, 3 * 2**powers // 2]))
    bounds = np.exp(0.301 * np.arange(1, 71))
    seconds = np.concatenate([seconds, np.floor(bounds * 0.999), np.ceil(bounds * 1.001)])
    seconds = np.concatenate([seconds, -seconds, [2**31 - 1, -(2**31)]]).astype("int32")
    seconds = np.pad(seconds, (0, -len(seconds) % 64))
    ones = jnp.ones((len(seconds), 1, 1), "float32")
    found = native.attend(
        0 * ones,
        ones,
        ones,
        jnp.arange(len(seconds), dtype="int32"),
        jnp.full(1, 100, "float32"),  # SiLU is the identity
        (jnp.arange(129, dtype="float32"), jnp.zeros(len(seconds), "int32"), jnp.asarray(seconds)),
        1.0,
    )
    np.testing.assert_array_equal(found[:, 0, 0] - 100, time_bucket(jnp.asarray(seconds)))


def test_what_is_not_finite_shows():
    (*arrays, bias), _, sequences = drawn([70], 1, 3, 3, 5, "")
    for i in range(3):
        wrong = [x.at[20].set(np.nan) if i == j else x for j, x in enumerate(arrays)]
        found: Any = pointwise_attention(*wrong, bias, sequences, 0.01)
        assert np.isnan(found[20]).all()
        assert np.isfinite(found[:12]).all()


def test_sequences_that_are_not_packed_are_refused():
    ones = jnp.ones((64, 1, 1), "float32")
    with pytest.raises(jax.errors.JaxRuntimeError, match="packed one behind the other"):
        native.attend(ones, ones, ones, jnp.full(64, 3, "int32"), ones[0, 0], (), 1.0)
    by_time = ones[0, 0], jnp.zeros(63, "int32"), jnp.zeros(64, "int32")
    with pytest.raises(ValueError, match="expected starts and times of 64 tokens, got"):
        native.attend(ones, ones, ones, jnp.zeros(64, "int32"), ones[0, 0], by_time, 1.0)
