"""Ids of a wrong type or shape are refused, and change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.dynamic_ids.id_map import IdMap, translate_all
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([1.5, 1.2]), "array of integers, got float64"),
        (np.array(["1", "2"]), "array of integers, got <U1"),
        (np.array([True]), "array of integers, got bool"),
        (np.ma.masked_equal([1, 2], 2), "a masked array"),
        ([2**64], "array of integers, got object"),
        ([[1], [2, 3]], "array of integers, got .*inhomogeneous"),
        (np.array([[1, 2], [3, 4]]), r"shape \[N\], got \[2, 2\]"),
        (np.array(7), r"shape \[N\], got \[\]"),
    ],
)
def test_what_is_no_vector_of_integers(ids, message):
    of = IdMap(9, DynamicIds(), name="items")
    for call in (of.find, lambda x: of.translate(x, 3), lambda x: translate_all([of], [x], 3)):
        with pytest.raises(UserError, match=f"table items: ids: expected .*{message}"):
            call(ids)
    assert (of.live, of.clock) == (0, 0)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64, list])
def test_integers_of_any_width_are_the_same_ids(kind):
    of, ids = IdMap(9, DynamicIds()), np.array([5, 7, 5])
    assert of.translate(ids, 0).rows.tolist() == [1, 2, 1]
    given = ids.tolist() if kind is list else ids.astype(kind)
    assert of.find(given).tolist() == [1, 2, 1]
