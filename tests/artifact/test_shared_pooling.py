"""Lookups that all samples share give what each of them would give."""

from __future__ import annotations

import numpy as np
import pytest
from stored_lookups import draw_ids, make_lookups

from dlrm_jax.artifact.row_pooling import RowPooling
from dlrm_jax.artifact.shared_pooling import SharedPooling


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [[1], [0, 3, 5, 9], range(10)])
def test_vectors_are_equal(shared, weighted):
    pool = RowPooling(make_lookups())
    names = {pool.lookups[i].name for i in shared}
    ids = draw_ids(pool.lookups, 20)
    weights = np.random.default_rng(1).normal(size=ids.shape).astype(np.float32)
    for i in shared:
        columns = slice(*pool.lookups[i].columns)
        ids[:, columns], weights[:, columns] = ids[3, columns], weights[3, columns]
    given = weights if weighted else None
    np.testing.assert_array_equal(SharedPooling(pool, names)(ids, given), pool(ids, given))
