"""A program: native kernels; prints a digest of what they give, and how many threads XLA has."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.backend import CPU
from dlrm_jax.native.ops import (
    available,
    interact,
    interact_back,
    pool,
    rowwise_adagrad,
    sgd,
)

assert available("native", CPU)
rng = np.random.default_rng(0)
weights = jnp.asarray(rng.normal(size=(5_000, 16)), jnp.float32)
blocks = [
    (
        jnp.asarray(rng.integers(0, 5_000, (8_192, 1, length)), jnp.int32),
        None,
        jnp.asarray(rng.normal(size=(8_192, 1, 16)), jnp.float32),
    )
    for length in (5, 3)
]
adagrad = functools.partial(rowwise_adagrad, rate=0.1, eps=1e-8, blocks=blocks)
found = [jax.jit(sgd)(weights, 0.1, blocks), *jax.jit(adagrad)(weights, jnp.zeros(5_000))]
found += [jax.jit(pool)(weights, rows, None) for rows, _, _ in blocks]
x, *vectors = (jnp.asarray(rng.normal(size=(300, 20)), jnp.float32) for _ in range(5))
z = jax.jit(lambda x, vectors: interact(x, vectors, False, columns=True))(x.T, vectors)
found += [
    z,
    *jax.tree.leaves(jax.jit(lambda z, x, v: interact_back(z, x, v, False, True))(z, x.T, vectors)),
]
digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in found)).hexdigest()
names = [(path / "comm").read_text() for path in Path("/proc/self/task").iterdir()]
print(digest, sum("XLAEigen" in name for name in names))
