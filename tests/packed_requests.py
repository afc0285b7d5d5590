"""Packed requests, and what the tests of encoders of histories compute with in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlrm_jax.attention.jagged import Candidates, sequences_of

LENGTHS = [0, 300, 3, 0, 130, 1, 64]  # across blocks of tokens, and empty ones
COUNTS = [2, 20, 1, 0, 1, 3, 2]  # candidates of each history, across their blocks
T, FILLING = 576, 3
H, A, V, D = 2, 3, 5, 6


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
