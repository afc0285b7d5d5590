"""Attention of candidates to their histories against loops in NumPy, and its gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_requests import REQUESTS, A, H, Requests, T, V, drawn, silu, softmax

from dlrm_jax.attention.jagged import Candidates
from dlrm_jax.attention.pointwise_target_attention import pointwise_target_attention
from dlrm_jax.attention.target_attention import target_attention


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def attention(kind: str, q, k, v, of: Candidates):
    out = np.zeros((len(q), H, V))
    for i, (first, end) in enumerate(zip(of.firsts.tolist(), of.ends.tolist(), strict=True)):
        if first == end:
            continue
        scores = np.einsum("ha,jha->hj", q[i], k[first:end])
        weights = softmax(scores / np.sqrt(A)) if kind == "softmax" else 0.01 * silu(scores)
        out[i] = np.einsum("hj,jhv->hv", weights, v[first:end])
    return out


def ours(kind: str, q, k, v, of: Candidates) -> Any:
    if kind == "softmax":
        return target_attention(q, k, v, of)
    return pointwise_target_attention(q, k, v, of, 0.01)


JITTED = jax.jit(ours, static_argnums=0)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_attention(kind: str):
    q, k, v = drawn(REQUESTS.count, H, A), drawn(T, H, A, seed=1), drawn(T, H, V, seed=2)
    found = JITTED(kind, q, k, v, REQUESTS.of)
    np.testing.assert_allclose(found, attention(kind, q, k, v, REQUESTS.of), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_gradients_of_attention(kind: str):
    """Against a matrix of all candidates and tokens, which JAX differentiates by itself."""
    arrays = drawn(REQUESTS.count, H, A), drawn(T, H, A, seed=1), drawn(T, H, V, seed=2)
    cotangent, of = drawn(REQUESTS.count, H, V, seed=5), REQUESTS.of
    place = np.arange(T)
    seen = (of.firsts[:, None] <= place) & (place < of.ends[:, None])

    def whole(q, k, v):
        scores = jnp.einsum("iha,jha->hij", q, k)
        if kind == "softmax":
            weights = jax.nn.softmax(jnp.where(seen, scores / np.sqrt(A), -1e300))
        else:
            weights = 0.01 * jax.nn.silu(scores)
        return jnp.sum(cotangent * jnp.einsum("hij,jhv->ihv", jnp.where(seen, weights, 0), v))

    def blocked(q, k, v):
        return jnp.sum(cotangent * ours(kind, q, k, v, of))

    found = jax.jit(jax.grad(blocked, (0, 1, 2)))(*arrays)
    for own, expected in zip(found, jax.grad(whole, (0, 1, 2))(*arrays), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 20)), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_ragged_requests(requests: list[tuple[int, int]]):
    """Attention over histories and candidates of any number, empty ones included."""
    lengths, counts = [n for n, _ in requests], [n for _, n in requests]
    packed = Requests(lengths, counts, T, 125 - sum(counts))
    q, k, v = drawn(packed.count, H, A), drawn(T, H, A, seed=1), drawn(T, H, V, seed=2)
    for kind in ("softmax", "pointwise"):
        found, wanted = JITTED(kind, q, k, v, packed.of), attention(kind, q, k, v, packed.of)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_no_array_is_that_of_all_candidates_and_tokens():
    tokens, count = 2**18, 2**14

    def spec(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def total(q, k, v, of):
        return jnp.sum(target_attention(q, k, v, of))

    span: Any = spec(count, dtype="int32")
    given = spec(count, 1, 4), spec(tokens, 1, 4), spec(tokens, 1, 4), Candidates(span, span)
    used = jax.jit(jax.grad(total, (0, 1, 2))).lower(*given).compile().memory_analysis()
    assert used is not None
    assert used.temp_size_in_bytes < count * tokens / 64  # of 4 bytes each they would take 4 ×
