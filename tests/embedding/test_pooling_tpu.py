"""The pooled lookup's kernel for TPUs, emulated on a CPU, against sums in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding import pooling_tpu
from dlrm_jax.embedding.packed_rows import pack
from dlrm_jax.embedding.pooling_tpu import pool

ROWS = 64


@pytest.mark.parametrize(
    ("shape", "width", "packed", "weighted"),
    [
        pytest.param((3, 2, 5), 128, False, True, marks=pytest.mark.thorough),
        ((5, 3, 7), 64, True, True),
        pytest.param((4, 1, 3), 8, True, False, marks=pytest.mark.thorough),
        ((70, 1, 3), 256, False, False),  # several blocks of bags, the last one not full
        ((3, 1, 150), 50, True, True),  # bags of several blocks of ids
        ((9, 2, 1), 64, False, False),  # rows of a part of a line, as those that owners send
    ],
)
def test_sums_of_bags(
    shape: tuple[int, int, int],
    width: int,
    packed: bool,
    weighted: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pooling_tpu, "_IDS", 128)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, width))
    table[3], table[4] = np.inf, np.nan
    rows = rng.integers(0, ROWS + 9, shape).astype("i4")
    rows[0, 0] = ROWS  # no row
    weights = rng.normal(size=shape) if weighted else None
    with jax.enable_x64(True):
        slab = pack(jnp.asarray(table)) if packed else jnp.asarray(table)
        given = None if weights is None else jnp.asarray(weights)
        found = np.asarray(pool(slab, jnp.asarray(rows), given, width, interpret=True))
    vectors = np.concatenate([table, np.zeros((9, width))])[rows]
    with np.errstate(invalid="ignore"):
        if weights is not None:
            vectors = vectors * weights[..., None]
        expected = vectors.sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert not found[0, 0].any()


def test_no_bags():
    assert pool(jnp.ones((8, 128)), jnp.zeros((0, 2, 3), "i4"), None, 128).shape == (0, 2, 128)
