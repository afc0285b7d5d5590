"""A table of more elements than 32 bits can number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding import (
    EmbeddingCollection,
    EmbeddingState,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
)
from dlrm_jax.mesh import make_mesh

DIM = 128
ROWS = 2**31 // DIM + 3
LAST = np.array([[ROWS - 1], [ROWS - 2], [ROWS - 3], [0], [ROWS - 4], [-1], [ROWS - 1], [1]])


@pytest.mark.thorough  # 4 GiB
def test_rows_at_the_end_are_read_and_updated():
    table = Table("large", ROWS, DIM, dtype="bfloat16", stochastic_rounding=False)
    lookup = Lookup("large", "f", "large")
    optimizer = RowWiseAdagrad(0.5)
    c = EmbeddingCollection([table], [Feature("f")], [lookup], make_mesh("1x1"), optimizer)
    specs = c.state_specs()
    state = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), specs),
        out_shardings=jax.tree.map(lambda x: x.sharding, specs),
    )()
    assert isinstance(state, EmbeddingState)
    (slab,) = state.tables.values()
    assert slab.size > 2**31

    def step(state, ids):
        pooled, residuals = c.lookup(state, ids)
        towards_row = jnp.arange(1.0, 9)[:, None] * jnp.ones((1, DIM))
        return pooled["large"], c.update(state, residuals, {"large": towards_row}, 0)

    step = jax.jit(step, donate_argnums=0)
    before, state = step(state, LAST)
    np.testing.assert_array_equal(before, 0)
    # The first step of row-wise Adagrad is minus the rate for any gradient.
    after, state = step(state, LAST)
    np.testing.assert_array_equal(after, np.where(LAST < 0, 0, -0.5) * np.ones((1, DIM)))
    (slots,) = state.slots.values()
    touched = np.unique(LAST[LAST >= 0])
    np.testing.assert_array_equal(np.flatnonzero(slots["accumulator"]), touched)
    (slab,) = state.tables.values()
    np.testing.assert_array_equal(np.unique(np.nonzero(np.asarray(slab[-8:]))[0]), [4, 5, 6, 7])
