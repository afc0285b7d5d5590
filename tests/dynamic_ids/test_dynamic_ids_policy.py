"""Rules that make no sense are refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pytest

from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.occupants import Occupants
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
        ("evict_share", True),
        ("admit_probability", True),
        ("max_age", 0),
        ("defaults", 0),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(UserError, match=f"{field}: expected"):
        DynamicIds(**{field: value})


def made(kind: Any, *arguments: Any, **fields: Any) -> Any:
    """An object made without the import hook, which users don't have and which would stop it."""
    new = object.__new__(kind)
    inspect.unwrap(kind.__init__)(new, *arguments, **fields)
    return new


def test_integers_of_numpy_are_kept_as_those_of_python():
    policy = made(DynamicIds, admit_count=np.int64(2), max_age=np.uint8(9))
    assert json.dumps(dataclasses.asdict(policy)) == json.dumps(
        dataclasses.asdict(DynamicIds(admit_count=2, max_age=9))
    )
    state = made(Occupants, 9, policy, np.int64(2**40))
    assert type(state.seed) is int  # hashes of 64 bits are made of it
    assert state.arrays()["numbers"].tolist() == [0, 0, 0, 2**40]


@pytest.mark.parametrize("seed", [1.5, True, "1", -1, 2**63])
def test_a_seed_is_an_integer(seed: Any):
    with pytest.raises(UserError, match="seed: expected an integer from 0"):
        made(Occupants, 9, DynamicIds(), seed)


@pytest.mark.parametrize(("rows", "defaults"), [(1, 1), (7, 7), (0, 1), (2**30 + 1, 1)])
def test_a_table_needs_a_row_besides_its_defaults(rows, defaults):
    with pytest.raises(UserError, match=f"expected an integer from {defaults + 1}"):
        IdMap(rows, DynamicIds(defaults=defaults))
