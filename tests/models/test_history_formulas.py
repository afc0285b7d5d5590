"""STCA and HSTU with candidates against their formulas, written with loops in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from packed_requests import (
    REQUESTS,
    D,
    Requests,
    T,
    bucket,
    built,
    called,
    drawn,
    f64,
    linear,
    norm,
    silu,
    softmax,
)

from dlrm_jax.attention.jagged import Candidates, Sequences, sequences_of
from dlrm_jax.errors import UserError
from dlrm_jax.models.hstu import HSTU
from dlrm_jax.models.hstu_candidates import HSTUCandidates
from dlrm_jax.models.stca import STCA


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def swiglu(layer, x):
    y = norm(x)
    return norm(y + linear(layer.down, silu(linear(layer.gate, y)) * linear(layer.up, y)))


def fused(layer, found):
    return swiglu(
        layer.swiglu, linear(layer.join, np.concatenate(found)) if layer.joins else found[0]
    )


def test_stca():
    encoder = built(STCA, layers=3, heads=2, hidden_width=7)
    history, candidates = drawn(T, D), drawn(REQUESTS.count, D, seed=1)
    found = called(
        encoder, jnp.asarray(history), REQUESTS.sequences, jnp.asarray(candidates), REQUESTS.of
    )
    by_place, by_time, since = map(f64, (encoder.by_place, encoder.by_time, encoder.since_last))
    for i, owner in enumerate(REQUESTS.owner):
        first, end = REQUESTS.spans[owner]
        places, times = np.arange(first, end), REQUESTS.times[first:end]
        x = [history[j] + by_place[bucket(min(end - j, 100))] for j in places]
        x = np.array([x[n] + by_time[bucket(times[-1] - t)] for n, t in enumerate(times)])
        results = [
            candidates[i] + (since[bucket(REQUESTS.asked[i] - times[-1])] if end > first else 0)
        ]
        for layer in encoder.layers:
            attended = np.zeros((2, 3))
            if end > first:
                query = linear(layer.query, fused(layer.fusion, results)).reshape(2, 3)
                tokens = swiglu(layer.history, x)
                key, value = (linear(y, tokens).reshape(-1, 2, 3) for y in (layer.key, layer.value))
                weights = softmax(np.einsum("ha,jha->hj", query, key) / np.sqrt(3))
                attended = np.einsum("hj,jha->ha", weights, value)
            results.append(linear(layer.output, attended.reshape(-1)))
        np.testing.assert_allclose(found[i], fused(encoder.result, results), rtol=1e-9, atol=1e-9)


def hstu(encoder: HSTU, x, times, following):
    """HSTU over one sequence."""
    place = np.arange(len(x))
    x = x * np.sqrt(D) + f64(encoder.positions.vectors)[np.minimum(place, 99)]
    for layer in encoder.layers:
        together = silu(norm(x) @ f64(layer.uvqk))
        u, v, q, k = np.split(together, [10, 20, 28], axis=1)
        attended = np.zeros((len(x), 2, 5))
        for i in place:
            for j in range(i + 1):
                bias = f64(layer.by_distance)[min(i - j, 99)]
                bias = bias + f64(layer.by_time)[bucket(following[i] - times[j])]
                for h in range(2):
                    own = slice(4 * h, 4 * h + 4)
                    weight = silu(q[i, own] @ k[j, own] + bias) / 100
                    attended[i, h] += weight * v[j, 5 * h : 5 * h + 5]
        x = linear(layer.output, norm(attended.reshape(len(x), 10)) * u) + x
    return x


def test_hstu_by_its_formula():
    requests = Requests([0, 5, 1], [1, 2, 2], 64, 1)
    encoder = built(HSTUCandidates, dropout=0.0, heads=2, attention_width=4, linear_width=5)
    history, candidates = drawn(64, D), drawn(requests.count, D, seed=1)
    found = called(
        encoder, jnp.asarray(history), requests.sequences, jnp.asarray(candidates), requests.of
    )
    for i, owner in enumerate(requests.owner):
        first, end = requests.spans[owner]
        x = np.concatenate([history[first:end], candidates[i : i + 1]])
        times = np.append(requests.times[first:end], requests.asked[i])
        # The last token is followed by one at its own time, and so is the candidate.
        following = np.append(times[1:], times[-1])
        following[max(end - first - 1, 0)] = times[max(end - first - 1, 0)]
        wanted = hstu(encoder.hstu, x, times, following)[-1]
        np.testing.assert_allclose(found[i], wanted, rtol=1e-9, atol=1e-9)


def appended(encoder: Any, history, candidates, requests: Requests):
    """HSTU over a copy of its history for each candidate, with the candidate behind it."""
    parts, times, following = [], [], []
    for i, owner in enumerate(requests.owner):
        first, end = requests.spans[owner]
        own, asked = requests.times[first:end], requests.asked[i : i + 1]
        parts += [history[first:end], candidates[i : i + 1]]
        times += [own, asked]
        following += [own[1:], own[-1:], asked]
    lengths = [int(end - first) + 1 for first, end in (requests.spans[o] for o in requests.owner)]
    size = -(-sum(lengths) // 64) * 64

    def filled(arrays) -> Any:
        joined = np.concatenate(arrays)
        return jnp.asarray(np.pad(joined, [(0, size - len(joined)), *[(0, 0)] * (joined.ndim - 1)]))

    at = filled(times), filled(following)
    sequences = sequences_of(jnp.asarray(lengths, "int32"), size, *at)
    return called(encoder.hstu, filled(parts), sequences)[np.cumsum(lengths) - 1]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-9), pytest.param("float32", 1e-6, marks=pytest.mark.thorough)],
)
def test_one_pass_over_a_history_is_that_of_a_copy_for_each_candidate(dtype, tolerance):
    """M-FALCON."""
    encoder = HSTUCandidates(D, 100, dropout=0.0, heads=2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(encoder)

    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    encoder = nnx.merge(graph, jax.tree.map(cast, state))
    history = drawn(T, D).astype(dtype)
    candidates = drawn(REQUESTS.count, D, seed=1).astype(dtype)
    found = called(
        encoder, jnp.asarray(history), REQUESTS.sequences, jnp.asarray(candidates), REQUESTS.of
    )
    wanted = appended(encoder, history, candidates, REQUESTS)
    assert found.dtype == wanted.dtype == dtype
    np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: STCA(6, 9, layers=0, rngs=nnx.Rngs(0)), "layers: expected at least 1, got 0"),
        (lambda: STCA(6, 0, rngs=nnx.Rngs(0)), "max_length: expected at least 1, got 0"),
        (lambda: STCA(6, 9, heads=4, rngs=nnx.Rngs(0)), "heads: expected a divisor of the width 6"),
    ],
)
def test_sizes_that_do_not_fit(make, text: str):
    with pytest.raises(UserError, match=text):
        make()


@pytest.mark.parametrize(("kind", "name"), [(STCA, "stca"), (HSTUCandidates, "hstu")])
def test_vectors_by_time_need_times(kind, name: str):
    def called_with(sequences):
        # Nothing is compiled.
        nnx.eval_shape(lambda: kind(6, 9, rngs=nnx.Rngs(0))(x, sequences, x[:1], of))

    x = jnp.zeros((64, 6))
    sequences = sequences_of(jnp.asarray([9], "int32"), 64)
    of = Candidates(jnp.zeros(1, "int32"), jnp.full(1, 9, "int32"))
    with pytest.raises(UserError, match=f"{name}: expected sequences"):
        called_with(sequences)
    timed = Sequences(sequences.starts, jnp.zeros(64, "int32"))
    with pytest.raises(UserError, match=f"{name}: expected sequences"):
        called_with(timed)
