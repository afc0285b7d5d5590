"""The pooled lookup's kernel for GPUs, emulated on a CPU, against sums in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.embedding.pooling_gpu import pool
from dlrm_jax.embedding.storage_dtype import encode

ROWS = 9


def expected(table, rows, id_weights):
    vectors = np.concatenate([table, np.zeros_like(table)])[np.minimum(rows, ROWS)]
    return (vectors if id_weights is None else vectors * id_weights[..., None]).sum(axis=2)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 40)),
    width=st.integers(1, 40),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=6, deadline=None)
def test_any_shape(shape: tuple[int, int, int], width: int, weighted: bool, seed: int):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(ROWS, width)).astype("f4")
    rows = rng.integers(0, ROWS + 3, shape).astype("i4")
    weights = rng.normal(size=shape).astype("f4") if weighted else None
    arrays = (
        jnp.asarray(table),
        jnp.asarray(rows),
        None if weights is None else jnp.asarray(weights),
    )
    found = pool(*arrays, interpret=True)
    np.testing.assert_allclose(found, expected(table.astype("f8"), rows, weights), atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_table_of_another_dtype(dtype: str):
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        table = jnp.asarray(rng.normal(size=(ROWS, 6)), dtype)
        rows = rng.integers(0, ROWS + 3, (2, 2, 7)).astype("i4")
        found = pool(encode(table), jnp.asarray(rows), None, table.dtype, interpret=True)
        wide = np.promote_types(np.dtype("f4"), dtype if dtype == "float64" else "f4")
        assert found.dtype == wide
        atol = 1e-14 if dtype == "float64" else 2e-6
        np.testing.assert_allclose(found, expected(np.asarray(table, "f8"), rows, None), atol=atol)


def test_bags_without_a_row_are_0():
    rows = jnp.full((2, 1, 5), ROWS)
    assert not np.any(pool(jnp.ones((ROWS, 4)), rows, None, interpret=True))
