import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding import gradient


def check_representatives(size: int, rows: np.ndarray) -> None:
    run = jax.jit(functools.partial(gradient.representatives, size))
    found = np.asarray(run(jnp.asarray(rows, jnp.int32)))
    none = rows >= size
    np.testing.assert_array_equal(found[none], rows.size)
    np.testing.assert_array_equal(rows[found[~none]], rows[~none])
    # One for each row, and it represents itself.
    assert len(np.unique(found[~none])) == len(np.unique(rows[~none]))
    np.testing.assert_array_equal(found[found[~none]], found[~none])


@given(
    st.sampled_from([1, 7, 100, 1_000_003, 2**31 - 1]),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30),
    st.lists(st.integers(0, 29), min_size=1, max_size=30),
)
def test_any_rows_have_one_representative_each(size, pool, picks):
    check_representatives(size, np.array([pool[i % len(pool)] for i in picks]))


@pytest.mark.parametrize("size", [3_000, 40_000, 10_000_000])
def test_many_rows_settle_though_their_hashes_collide(size):
    # Of 40,000 rows in 2^19 entries, above a thousand meet another.
    rows = np.random.default_rng(0).integers(0, size + size // 8, 40_000)
    check_representatives(size, rows)


def test_rows_made_to_collide_settle():
    # All of these have the same hash in the first round: multiples of the golden ratio's
    # inverse (mod 2^32), whose products have the same upper bits.
    inverse = pow(int(gradient._GOLDEN), -1, 2**32)
    rows = np.array([k * inverse % 2**32 for k in range(4000)])
    rows = rows[rows < 2**31 - 1]
    assert len(rows) > 1000
    check_representatives(2**31 - 1, rows)
