"""The different rows among those that samples read: of the native kernel, of JAX and of NumPy."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding.row_requests import unique


def by_hand(partners: int, none: int, partner: np.ndarray, number: np.ndarray):
    """Rows, starts and places, by `numpy.unique` on pairs."""
    present = partner < partners
    pairs = partner.astype(np.int64) * none + number
    different, inverse = np.unique(pairs[present], return_inverse=True)
    rows = np.full(len(partner), none)
    rows[: len(different)] = different % none
    places = np.full(len(partner), len(partner))
    places[present] = inverse
    return rows, np.searchsorted(different // none, np.arange(partners + 1)), places


jitted = jax.jit(unique, static_argnums=(0, 1, 4))


@pytest.mark.parametrize("native", [True, False])
@given(
    partners=st.integers(1, 4),
    none=st.sampled_from([1, 5, 2**11, 2**22 + 1, 2**30]),
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1, 300]),
)
def test_rows_by_partner(native, partners, none, seed, count):
    rng = np.random.default_rng(seed)
    partner = rng.integers(0, partners + 1, count).astype(np.int32)
    number = np.where(rng.random(count) < 0.5, rng.integers(0, none, count), (none - 1) // 2)
    number = np.where(partner < partners, number, none).astype(np.int32)
    found, places = jitted(partners, none, partner, number, native)
    for x, expected in zip(
        (found.rows, found.starts, places), by_hand(partners, none, partner, number), strict=True
    ):
        np.testing.assert_array_equal(x, expected)
