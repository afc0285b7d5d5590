"""STCA and HSTU with candidates against their formulas, written with loops in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.errors import UserError
from dlrm_jax.models.history_encoder import Candidates, HistoryEncoder
from dlrm_jax.models.hstu import HSTU
from dlrm_jax.models.hstu_candidates import HSTUCandidates
from dlrm_jax.models.jagged import Sequences, sequences_of
from dlrm_jax.models.pointwise_target_attention import pointwise_target_attention
from dlrm_jax.models.stca import STCA
from dlrm_jax.models.target_attention import target_attention

LENGTHS = [0, 300, 3, 0, 130, 1, 64]  # across blocks of tokens, and empty ones
COUNTS = [2, 20, 1, 0, 1, 3, 2]  # candidates of each history, across their blocks
T, FILLING = 576, 3
H, A, V, D = 2, 3, 5, 6


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class Requests:
    """Histories with candidates, as they are packed."""

    def __init__(self, lengths: list[int], counts: list[int], tokens: int, filling: int):
        rng, ends = np.random.default_rng(1), np.cumsum(lengths)
        self.spans = [(e - n, e) for n, e in zip(lengths, ends, strict=True)]
        self.owner = np.repeat(np.arange(len(lengths)), counts)
        times, asked = np.zeros(tokens, "i4"), np.zeros(len(lengths), "i4")
        for number, (first, end) in enumerate(self.spans):
            drawn = np.sort(rng.integers(0, 10**6, end - first + 1)).astype("i4")
            times[first:end], asked[number] = drawn[:-1], drawn[-1]
        self.times, self.asked = times, asked[self.owner]
        self.sequences = sequences_of(jnp.asarray(lengths, "int32"), tokens, jnp.asarray(times))
        firsts, ends = np.array(self.spans)[self.owner].reshape(-1, 2).T

        def filled(x: np.ndarray, value: int) -> Any:
            return jnp.asarray(np.pad(x, (0, filling), constant_values=value), "int32")

        self.of = Candidates(filled(firsts, 7), filled(ends, 7), filled(self.asked, 0))
        self.count = len(self.owner) + filling


REQUESTS = Requests(LENGTHS, COUNTS, T, FILLING)


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def bucket(seconds: int) -> int:
    return min(int(np.log(np.float32(max(abs(int(seconds)), 1))) / np.float32(0.301)), 128)


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


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def built(kind: Any, max_length: int = 100, **options: Any) -> Any:
    """An encoder whose parameters are all drawn, so that zeros hide nothing."""
    encoder = kind(D, max_length, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(encoder)
    rng = np.random.default_rng(1)

    def draw(x):
        is_number = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(rng.normal(0, 0.5, x.shape)) if is_number else x

    return nnx.merge(graph, jax.tree.map(draw, state))


def called(encoder: Any, *given: Any) -> Any:
    graph, state = nnx.split(encoder)
    return jax.jit(lambda state, *given: nnx.merge(graph, state)(*given))(state, *given)


def f64(parameter) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def linear(layer, x):
    return x @ f64(layer.kernel) + (0 if layer.bias is None else f64(layer.bias))


def swiglu(layer, x):
    return norm(linear(layer.down, silu(linear(layer.gate, x)) * linear(layer.up, x)))


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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-6)])
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


ENCODERS = [(STCA, {"heads": 2}), (HSTUCandidates, {"dropout": 0.0})]


def one_by_one(requests: Requests, history) -> tuple[Requests, np.ndarray]:
    """A copy of the history for each candidate."""
    spans = [requests.spans[owner] for owner in requests.owner]
    lengths = [int(end - first) for first, end in spans]
    size = -(-max(sum(lengths), 1) // 64) * 64
    copies = Requests(lengths, [1] * len(lengths), size, 0)

    def copied(x: np.ndarray) -> np.ndarray:
        out = np.zeros((size, *x.shape[1:]), x.dtype)
        joined = np.concatenate([x[first:end] for first, end in spans])
        out[: len(joined)] = joined
        return out

    times = jnp.asarray(copied(requests.times))
    copies.sequences = copies.sequences._replace(times=times)
    copies.of = copies.of._replace(times=jnp.asarray(requests.asked))
    return copies, copied(history)


@pytest.mark.parametrize(("kind", "options"), ENCODERS)
def test_candidates_that_share_a_history_and_one_by_one_learn_the_same(kind, options):
    encoder, history = built(kind, **options), drawn(T, D)
    candidates = drawn(len(REQUESTS.owner), D, seed=1)
    copies, copied = one_by_one(REQUESTS, history)
    of = jax.tree.map(lambda x: x[: len(candidates)], REQUESTS.of)
    graph, state = nnx.split(encoder)
    cotangent = drawn(*candidates.shape, seed=3)

    def total(state, history, candidates, sequences, of):
        return jnp.sum(cotangent * nnx.merge(graph, state)(history, sequences, candidates, of))

    gradient = jax.jit(jax.value_and_grad(total, (0, 2), allow_int=True))
    shared = gradient(state, jnp.asarray(history), candidates, REQUESTS.sequences, of)
    single = gradient(state, jnp.asarray(copied), candidates, copies.sequences, copies.of)
    for own, other in zip(jax.tree.leaves(shared), jax.tree.leaves(single), strict=True):
        if own.dtype == np.float64:
            np.testing.assert_allclose(own, other, rtol=1e-8, atol=1e-9)


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


@pytest.mark.parametrize(("kind", "options"), ENCODERS)
def test_what_is_kept_serves_candidates_that_come_later(kind, options):
    encoder: HistoryEncoder = built(kind, **options)
    history, candidates = jnp.asarray(drawn(T, D)), jnp.asarray(drawn(REQUESTS.count, D, seed=1))
    kept = jax.jit(encoder.encode)(history, REQUESTS.sequences)
    wanted = called(encoder, history, REQUESTS.sequences, candidates, REQUESTS.of)
    found = [
        jax.jit(encoder.score)(
            kept, candidates[part], jax.tree.map(lambda x, p=part: x[p], REQUESTS.of)
        )
        for part in (slice(0, 9), slice(9, 30), slice(30, None))
    ]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "options"), ENCODERS)
def test_a_candidate_depends_on_no_other_and_on_no_other_history(kind, options):
    encoder, history = built(kind, **options), drawn(T, D)
    candidates = drawn(REQUESTS.count, D, seed=1)
    own = REQUESTS.owner == 4
    first, end = REQUESTS.spans[4]

    def results(history, candidates):
        given = jnp.asarray(history), REQUESTS.sequences, jnp.asarray(candidates), REQUESTS.of
        return np.asarray(called(encoder, *given))[: len(own)]

    other, others = drawn(T, D, seed=7), drawn(REQUESTS.count, D, seed=8)
    other[first:end] = history[first:end]
    others[: len(own)][own] = candidates[: len(own)][own]
    before, after = results(history, candidates), results(other, others)
    np.testing.assert_array_equal(before[own], after[own])
    assert not np.isclose(before[~own], after[~own]).all(axis=1).any()
    other[end - 1, 0] += 1
    assert not np.allclose(results(other, others)[own], before[own])


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


@pytest.mark.parametrize(("kind", "options"), ENCODERS)
def test_bfloat16_and_histories_longer_than_expected_are_finite(kind, options):
    encoder = built(kind, max_length=20, **options)

    def total(history, candidates):
        given = history, REQUESTS.sequences, candidates, REQUESTS.of
        return jnp.sum(encoder(*given).astype("float32") ** 2)

    given = jnp.asarray(drawn(T, D), "bfloat16"), jnp.asarray(drawn(REQUESTS.count, D), "bfloat16")
    for found in jax.jit(jax.grad(total, (0, 1)))(*given):
        assert np.isfinite(np.asarray(found, "float32")).all()


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
    encoder, x = kind(6, 9, rngs=nnx.Rngs(0)), jnp.zeros((64, 6))
    sequences = sequences_of(jnp.asarray([9], "int32"), 64)
    of = Candidates(jnp.zeros(1, "int32"), jnp.full(1, 9, "int32"))
    with pytest.raises(UserError, match=f"{name}: expected sequences"):
        encoder(x, sequences, x[:1], of)
    timed = Sequences(sequences.starts, jnp.zeros(64, "int32"))
    with pytest.raises(UserError, match=f"{name}: expected sequences"):
        encoder(x, timed, x[:1], of)
