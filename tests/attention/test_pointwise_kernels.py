"""The kernels of HSTU's attention, emulated on a CPU, against loops over sequences in NumPy."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from dlrm_jax.attention import pointwise_attention, pointwise_gpu, pointwise_kernels, pointwise_tpu
from dlrm_jax.attention.attention_bias import Bias
from dlrm_jax.attention.jagged import Sequences, sequences_of

LENGTHS = [0, 70, 3, 130, 1]  # across borders of blocks of both sizes, and filling behind them
SPANS = [(0, 70), (70, 73), (73, 203), (203, 204)]
H, A, V = 2, 3, 5
SCALE = 0.1
TPU = AbstractMesh((), (), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def timed(tokens: int) -> tuple[Sequences, np.ndarray, np.ndarray]:
    rng, times, following = np.random.default_rng(1), np.zeros(tokens, "i4"), np.zeros(tokens, "i4")
    for start, end in SPANS:
        steps = np.sort(rng.integers(0, 10**6, end - start + 1)).astype("i4")
        times[start:end], following[start:end] = steps[:-1], steps[1:]
    lengths = jnp.asarray(LENGTHS, "int32")
    return (
        sequences_of(lengths, tokens, jnp.asarray(times), jnp.asarray(following)),
        times,
        following,
    )


def expected(q, k, v, by_distance, by_time, times, following, cotangent):
    """The results, and the gradients of all inputs."""
    out, grads = np.zeros(v.shape), [np.zeros(x.shape) for x in (q, k, v, by_distance, by_time)]
    for start, end in SPANS:
        own = slice(start, end)
        place = np.arange(end - start)
        apart = place[:, None] - place
        seen, distance = apart >= 0, np.clip(apart, 0, len(by_distance) - 1)
        seconds = np.abs(following[own][:, None].astype("f8") - times[own])
        bucket = (np.log(np.maximum(seconds, 1)) / 0.301).astype("i4")
        for h in range(q.shape[1]):
            of_q, of_k, of_v, of_out = (x[own, h].astype("f8") for x in (q, k, v, cotangent))
            scores = of_q @ of_k.T + by_distance[distance] + by_time[bucket]
            half = 1 / (1 + np.exp(-scores))
            weights = np.where(seen, SCALE * scores * half, 0)
            out[own, h] = weights @ of_v
            slopes = np.where(seen, SCALE * half * (1 + scores * (1 - half)), 0)
            of_scores = slopes * (of_out @ of_v.T)
            grads[0][own, h] = of_scores @ of_k
            grads[1][own, h] = of_scores.T @ of_q
            grads[2][own, h] = weights.T @ of_out
            np.add.at(grads[3], distance, of_scores)
            np.add.at(grads[4], bucket, of_scores)
    return out, grads


def emulated(kernels, tokens: int, distances: int, with_times: bool, dtype: str = "float32"):
    """What kernels give, and what is expected: results, and the gradients of the inputs."""
    sequences, times, following = timed(tokens)
    q, k, v = drawn(tokens, H, A), drawn(tokens, H, A, seed=1), drawn(tokens, H, V, seed=2)
    by_distance, by_time = drawn(distances, seed=3), drawn(129, seed=4) * with_times
    cotangent = drawn(tokens, H, V, seed=5)
    rounded = [np.asarray(jnp.asarray(x, dtype), "f4") for x in (q, k, v, cotangent)]
    q, k, v, cotangent = rounded
    bias = Bias(jnp.asarray(by_distance), jnp.asarray(by_time) if with_times else None)

    def run(*arrays):
        given = *(x.astype(dtype) for x in arrays[:3]), bias, sequences, SCALE
        out = kernels.forward(*given, interpret=True)
        *grads, of_bias = kernels.backward(*given, arrays[3].astype(dtype), interpret=True)
        return out, [*grads, *(x for x in of_bias if x is not None)]

    context = use_abstract_mesh(TPU) if kernels is pointwise_tpu else contextlib.nullcontext()
    with context:
        found = jax.jit(run)(*map(jnp.asarray, rounded))
    return found, expected(q, k, v, by_distance, by_time, times, following, cotangent)


@pytest.mark.parametrize(
    ("kernels", "tokens", "distances", "with_times"),
    [
        (pointwise_gpu, 320, 100, True),
        (pointwise_gpu, 210, 50, False),  # as many tokens as fill no block
        (pointwise_tpu, 384, 150, True),
    ],
)
def test_results_and_gradients(kernels, tokens: int, distances: int, with_times: bool):
    found, wanted = emulated(kernels, tokens, distances, with_times)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    for own, gradient in zip(found[1], wanted[1], strict=False):
        np.testing.assert_allclose(own, gradient, rtol=1e-5, atol=1e-4)
    assert len(found[1]) == 4 + with_times


def test_results_in_bfloat16_are_those_of_rounded_inputs():
    found, wanted = emulated(pointwise_gpu, 256, 50, True, "bfloat16")
    assert found[0].dtype == found[1][0].dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0].astype("f4"), wanted[0], rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("platform", "wanted"), [("cpu", None), ("gpu", pointwise_gpu), ("tpu", pointwise_tpu)]
)
def test_kernels_are_those_of_the_mesh_that_a_program_is_made_for(platform: str, wanted):
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice("of a test", 1, platform))
    with use_abstract_mesh(mesh):
        assert pointwise_kernels.kernels_for(jnp.dtype("float32")) is wanted
        assert pointwise_kernels.kernels_for(jnp.dtype("float64")) is None
    assert pointwise_kernels.kernels_for(jnp.dtype("float32")) is None


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_attention_calls_two_kernels_on_the_way_back(platform: str):
    sequences, *_ = timed(256)
    q, v, bias = jnp.zeros((256, H, A)), jnp.zeros((256, H, V)), Bias(jnp.zeros(9), jnp.zeros(129))
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice("TPU v5 lite", 1, platform))

    def total(q, k, v):
        return jnp.sum(pointwise_attention.pointwise_attention(q, k, v, bias, sequences, SCALE))

    with use_abstract_mesh(mesh):
        text = str(jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(q, q, v))
    assert text.count("pallas_call[") == 3
    assert "f32[256,256" not in text
