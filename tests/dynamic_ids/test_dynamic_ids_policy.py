"""Rules that make no sense are refused."""

from __future__ import annotations

import pytest

from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("admit_count", 0),
        ("admit_count", 256),
        ("admit_count", True),
        ("admit_probability", 0),
        ("admit_probability", float("nan")),
        ("evict", "fifo"),
        ("evict_share", 1.5),
        ("max_age", 0),
        ("defaults", 0),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(UserError, match=f"{field}: expected"):
        DynamicIds(**{field: value})


@pytest.mark.parametrize(("rows", "defaults"), [(1, 1), (7, 7), (0, 1), (2**30 + 1, 1)])
def test_a_table_needs_a_row_besides_its_defaults(rows, defaults):
    with pytest.raises(UserError, match=f"expected an integer from {defaults + 1}"):
        IdMap(rows, DynamicIds(defaults=defaults))
