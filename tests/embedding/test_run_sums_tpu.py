"""The kernel that sums runs on TPUs, emulated, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding.run_sums_tpu import sums_up_to


@pytest.mark.parametrize("width", [1, 16, 128, 200])
@pytest.mark.parametrize("count", [128, 1000])
def test_sums_of_runs(count: int, width: int):
    """Short runs, one over several blocks, and one that ends with a block."""
    rng = np.random.default_rng(width)
    lengths = [1, 3, 124, 300, 1, *rng.integers(1, 9, count)]
    runs = np.repeat(np.arange(len(lengths)), lengths)[:count]
    first = np.searchsorted(runs, runs)
    x = rng.standard_normal((count, width))
    x[5], x[count - 1] = np.inf, np.nan
    with jax.enable_x64(True):
        before = jnp.asarray(np.arange(count) - first, jnp.int32)
        sums = np.asarray(sums_up_to(before, jnp.asarray(x), interpret=True))
    for i in range(count):
        expected = x[first[i] : i + 1].sum(axis=0)
        np.testing.assert_allclose(sums[i], expected, rtol=1e-12, atol=1e-12)
