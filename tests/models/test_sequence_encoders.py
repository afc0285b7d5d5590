"""HSTU and SASRec against their formulas, written with loops over tokens in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlrm_jax.attention.attention_bias import Bias
from dlrm_jax.attention.causal_attention import causal_attention
from dlrm_jax.attention.jagged import Sequences, sequences_of
from dlrm_jax.attention.pointwise_attention import pointwise_attention
from dlrm_jax.errors import UserError
from dlrm_jax.models.hstu import HSTU
from dlrm_jax.models.sasrec import SASRec

LENGTHS = [0, 70, 3, 0, 130, 1, 64]  # in blocks of 64: across borders, empty, one that fits
T = 384  # with filling: more than a block of it
SPANS = [(0, 0), (0, 70), (70, 73), (73, 73), (73, 203), (203, 204), (204, 268)]
H, A, V = 2, 3, 5
DISTANCES = 50


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def timed() -> tuple[Sequences, np.ndarray, np.ndarray]:
    rng, times, following = np.random.default_rng(1), np.zeros(T, "i4"), np.zeros(T, "i4")
    for start, end in SPANS:
        drawn = np.sort(rng.integers(0, 10**6, end - start + 1)).astype("i4")
        times[start:end], following[start:end] = drawn[:-1], drawn[1:]
    lengths = jnp.asarray(LENGTHS, "int32")
    return sequences_of(lengths, T, jnp.asarray(times), jnp.asarray(following)), times, following


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def silu(x):
    return x / (1 + np.exp(-x))


def bucket(seconds: int) -> int:
    return min(int(np.log(np.float32(max(abs(seconds), 1))) / np.float32(0.301)), 128)


def pointwise(q, k, v, by_distance, by_time, times, following, scale):
    out = np.zeros((T, q.shape[1], v.shape[2]))
    for start, end in SPANS:
        for i in range(start, end):
            j = np.arange(start, i + 1)
            bias = by_distance[np.minimum(i - j, len(by_distance) - 1)]
            bias = bias + by_time[[bucket(int(following[i]) - int(times[x])) for x in j]]
            scores = np.einsum("ha,jha->hj", q[i], k[j]) + bias
            out[i] = np.einsum("hj,jhv->hv", scale * silu(scores), v[j])
    return out


def softmax(q, k, v):
    out = np.zeros((T, q.shape[1], v.shape[2]))
    for start, end in SPANS:
        for i in range(start, end):
            scores = np.einsum("ha,jha->hj", q[i], k[start : i + 1]) / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[i] = np.einsum("hj,jhv->hv", weights, v[start : i + 1])
    return out


def test_sequences_of_lengths():
    sequences = sequences_of(jnp.asarray([0, 2, 0, 3], "int32"), 7)
    assert sequences.starts.tolist() == [0, 0, 2, 2, 2, 7, 7]
    assert sequences.positions.tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert sequences.present.tolist() == [True] * 5 + [False] * 2


def test_pointwise_attention():
    sequences, times, following = timed()
    q, k, v = drawn(T, H, A), drawn(T, H, A, seed=1), drawn(T, H, V, seed=2)
    by_distance, by_time = drawn(DISTANCES, seed=3), drawn(129, seed=4)
    found = jax.jit(pointwise_attention, static_argnums=5)(
        q, k, v, Bias(jnp.asarray(by_distance), jnp.asarray(by_time)), sequences, 0.01
    )
    wanted = pointwise(q, k, v, by_distance, by_time, times, following, 0.01)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_causal_attention():
    sequences, *_ = timed()
    q, k, v = drawn(T, H, A), drawn(T, H, A, seed=1), drawn(T, H, V, seed=2)
    found = jax.jit(causal_attention)(q, k, 3 * v, sequences)
    np.testing.assert_allclose(found, softmax(q, k, 3 * v), rtol=1e-9, atol=1e-12)


def whole(kind: str, sequences: Sequences, q, k, v, by_distance, by_time):
    """The attention by a matrix of all tokens, which JAX differentiates by itself."""
    i, j = np.arange(T)[:, None], np.arange(T)
    seen = (j <= i) & (sequences.starts[:, None] <= j)
    scores = jnp.einsum("iha,jha->hij", q, k)
    if kind == "softmax":
        scores = jnp.where(seen, scores / np.sqrt(A), -1e300)
        weights = jnp.where(seen, jax.nn.softmax(scores), 0)
    else:
        assert sequences.times is not None
        assert sequences.next_times is not None
        apart = np.asarray(sequences.next_times)[:, None] - np.asarray(sequences.times)
        buckets = np.vectorize(bucket)(apart)
        bias = by_distance[np.clip(i - j, 0, DISTANCES - 1)] + by_time[buckets]
        weights = jnp.where(seen, 0.01 * jax.nn.silu(scores + bias), 0)
    return jnp.einsum("hij,jhv->ihv", weights, v)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_gradients_of_attention(kind: str):
    sequences, *_ = timed()
    arrays = drawn(T, H, A), drawn(T, H, A, seed=1), drawn(T, H, V, seed=2)
    biases = drawn(DISTANCES, seed=3), drawn(129, seed=4)
    cotangent = drawn(T, H, V, seed=5)

    def of_blocks(q, k, v, by_distance, by_time):
        if kind == "softmax":
            return jnp.sum(cotangent * causal_attention(q, k, v, sequences))
        bias = Bias(by_distance, by_time)
        return jnp.sum(cotangent * pointwise_attention(q, k, v, bias, sequences, 0.01))

    def of_whole(*given):
        return jnp.sum(cotangent * whole(kind, sequences, *given))

    numbers = range(5)
    found, wanted = (jax.jit(jax.grad(x, numbers))(*arrays, *biases) for x in (of_blocks, of_whole))
    for own, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-12)


def norm(x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def built(kind, **options):
    """An encoder without dropout whose parameters are all drawn, so that zeros hide nothing."""
    encoder = kind(6, 100, dropout=0.0, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(encoder)
    rng = np.random.default_rng(1)

    def draw(x):
        is_number = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(rng.normal(0, 0.5, x.shape)) if is_number else x

    return nnx.merge(graph, jax.tree.map(draw, state))


def f64(parameter) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def with_positions(encoder, x):
    own, found = f64(encoder.positions.vectors), np.zeros_like(x)
    for start, end in SPANS:
        for i in range(start, end):
            found[i] = x[i] * np.sqrt(6) + own[min(i - start, 99)]
    return found


def linear(layer, x):
    return x @ f64(layer.kernel) + f64(layer.bias)


def test_hstu():
    sequences, times, following = timed()
    encoder, x = built(HSTU, heads=2, attention_width=4, linear_width=5), drawn(T, 6)
    wanted = with_positions(encoder, x)
    for layer in encoder.layers:
        together = silu(norm(wanted, 1e-6) @ f64(layer.uvqk))
        u, v, q, k = np.split(together, [10, 20, 28], axis=1)
        v, q, k = (y.reshape(T, 2, -1) for y in (v, q, k))
        bias = f64(layer.by_distance), f64(layer.by_time)
        attended = pointwise(q, k, v, *bias, times, following, 1 / 100)
        wanted = linear(layer.output, norm(attended.reshape(T, 10), 1e-6) * u) + wanted
    found = jax.jit(lambda x: encoder(x, sequences))(x)
    there = np.asarray(sequences.present)
    np.testing.assert_allclose(found[there], wanted[there], rtol=1e-9, atol=1e-9)


def test_sasrec():
    sequences, *_ = timed()
    encoder, x = built(SASRec, heads=2, hidden_width=7), drawn(T, 6)
    wanted = with_positions(encoder, x)
    for layer in encoder.layers:
        query = norm(wanted, 1e-8)
        inputs = linear(layer.query, query), linear(layer.key, wanted), linear(layer.value, wanted)
        attended = softmax(*(y.reshape(T, 2, 3) for y in inputs)).reshape(T, 6)
        y = norm(query + linear(layer.output, attended), 1e-8)
        wanted = y + linear(layer.second, np.maximum(linear(layer.first, y), 0))
    found = jax.jit(lambda x: encoder(x, sequences))(x)
    there = np.asarray(sequences.present)
    np.testing.assert_allclose(found[there], wanted[there], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [HSTU, SASRec])
def test_a_sequence_depends_on_no_other_and_on_nothing_behind(kind):
    sequences, *_ = timed()
    encoder, x = built(kind), drawn(T, 6)
    run = jax.jit(lambda x: encoder(x, sequences))
    found = run(x)
    other = x.copy()
    other[150:] = drawn(T - 150, 6, seed=7)  # inside the sequence of 73 to 203
    other[:73] = drawn(73, 6, seed=8)
    again = run(other)
    np.testing.assert_array_equal(found[73:150], again[73:150])
    assert not np.allclose(found[150:203], again[150:203])


@pytest.mark.parametrize("kind", [HSTU, pytest.param(SASRec, marks=pytest.mark.thorough)])
def test_bfloat16_and_long_sequences_are_finite(kind):
    sequences = sequences_of(jnp.asarray([0, 320], "int32"), T)  # longer than max_length
    options = {"timed": False} if kind is HSTU else {}
    encoder = built(kind, **options)

    def total(x):
        return jnp.sum(encoder(x, sequences).astype("float32") ** 2)

    found = jax.jit(jax.grad(total))(jnp.asarray(drawn(T, 6), "bfloat16"))
    assert np.isfinite(np.asarray(found, "float32")).all()


def test_attention_in_bfloat16_is_that_of_rounded_inputs():
    sequences, *_ = timed()
    short = [jnp.asarray(drawn(T, H, n, seed=n), "bfloat16") for n in (A, A, V)]
    run = jax.jit(causal_attention)
    exact = run(*(x.astype("float64") for x in short), sequences)
    found = run(*short, sequences)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype("float64"), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HSTU(6, 0, rngs=nnx.Rngs(0)), "max_length: expected at least 1, got 0"),
        (lambda: HSTU(6, 9, layers=0, rngs=nnx.Rngs(0)), "layers: expected at least 1, got 0"),
        (lambda: HSTU(6, 9, heads=7, rngs=nnx.Rngs(0)), "attention_width: expected at least 1"),
        (lambda: SASRec(6, 9, heads=4, rngs=nnx.Rngs(0)), "heads: expected a divisor of the wid"),
    ],
)
def test_sizes_that_do_not_fit(make, text: str):
    with pytest.raises(UserError, match=text):
        make()


def test_a_bias_by_time_needs_times():
    with pytest.raises(UserError, match="hstu: expected sequences with times, got none"):
        HSTU(6, 9, rngs=nnx.Rngs(0))(
            jnp.zeros((64, 6)), sequences_of(jnp.asarray([9], "int32"), 64)
        )


def test_tokens_come_in_whole_blocks():
    encoder = SASRec(6, 9, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="expected a multiple of 64 packed tokens"):
        encoder(jnp.zeros((65, 6)), sequences_of(jnp.asarray([65], "int32"), 65))
