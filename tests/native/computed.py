"""A program: native updates and lookups; prints a digest of them, and how many threads XLA has."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.native.kernels import available, pool, rowwise_adagrad, sgd

assert available("native", "cpu")
rng = np.random.default_rng(0)
weights = jnp.asarray(rng.normal(size=(5_000, 16)), jnp.float32)
bags = [
    (
        jnp.asarray(rng.integers(0, 5_000, (8_192, 1, length)), jnp.int32),
        None,
        jnp.asarray(rng.normal(size=(8_192, 1, 16)), jnp.float32),
    )
    for length in (5, 3)
]
adagrad = functools.partial(rowwise_adagrad, rate=0.1, eps=1e-8, bags=bags)
found = [jax.jit(sgd)(weights, 0.1, bags), *jax.jit(adagrad)(weights, jnp.zeros(5_000))]
found += [jax.jit(pool)(weights, rows, None) for rows, _, _ in bags]
digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in found)).hexdigest()
names = [(path / "comm").read_text() for path in Path("/proc/self/task").iterdir()]
print(digest, sum("XLAEigen" in name for name in names))
