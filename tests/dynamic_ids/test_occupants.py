"""Damaged arrays of maps of dynamic ids are named."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError

POLICY = DynamicIds(admit_count=2, defaults=2)


def arrays() -> dict[str, np.ndarray]:
    ids = IdMap(8, POLICY, seed=3)
    ids.translate(np.array([5, 5, 6, 6]), 9)
    return ids.arrays()


def set_to(name, place, value):
    def damage(arrays):
        arrays[name][place] = value

    return damage


def cast(name, dtype):
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: x.pop("counts"), "there is no array counts"),
        (cast("keys", np.int64), "keys: expected uint64 of shape .n,., got int64"),
        (lambda x: x.update(sketch=x["sketch"][1:]), "sketch: expected uint8 of shape .64,."),
        (lambda x: x.update(counts=x["counts"][1:]), "counts: expected uint32 of shape .8,."),
        (set_to("keys", 3, 5), "rows 2 and 3 both belong to id 5"),
        (set_to("counts", 3, 0), "row 3 is free and has a key"),
        (set_to("counts", 1, 4), "one of the 2 default rows belongs to an id"),
        (set_to("last_seen", 7, 4), "row 7 is free and has a last_seen"),
        (set_to("last_seen", 2, 10), "row 2 was seen at 10, the clock shows 9"),
        (set_to("last_seen", 2, -1), "row 2 was seen at -1"),
        (set_to("numbers", 1, 10), "clock 9, last sweep 10"),
        (set_to("numbers", 0, -1), "clock -1"),
        (set_to("numbers", 3, -1), "seed: expected an integer from 0"),
    ],
)
def test_damage_is_named(damage, message):
    damaged = arrays()
    damage(damaged)
    with pytest.raises(UserError, match=message):
        IdMap.from_arrays(POLICY, damaged)


def test_without_a_sketch_there_is_no_empty_array():
    ids = IdMap(8, DynamicIds(), seed=3)
    ids.translate(np.array([5, 6]), 9)
    saved = ids.arrays()
    assert "sketch" not in saved
    of_earlier_commits = saved | {"sketch": np.zeros(0, np.uint8)}
    for kept in (saved, of_earlier_commits):
        assert IdMap.from_arrays(DynamicIds(), kept).find(np.array([6, 5])).tolist() == [2, 1]
    with pytest.raises(UserError, match="there is no array sketch"):
        IdMap.from_arrays(POLICY, saved)
    with pytest.raises(UserError, match=r"sketch: expected uint8 of shape .0,."):
        IdMap.from_arrays(DynamicIds(), saved | {"sketch": np.zeros(64, np.uint8)})


def test_another_table_of_defaults_is_refused():
    with pytest.raises(UserError, match="default rows"):
        IdMap.from_arrays(DynamicIds(admit_count=2, defaults=3), arrays())


def test_the_copies_are_the_callers():
    ids = IdMap.from_arrays(POLICY, kept := arrays())
    for array in (*kept.values(), *ids.arrays().values()):
        array[:] = 7
    assert ids.find(np.array([5, 6, 7])).tolist()[:2] == [2, 3]
    assert ids.arrays()["numbers"].tolist() == [9, 0, 4, 3]
