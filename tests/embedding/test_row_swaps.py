"""Rows of a state that change places with others: what was there comes back, bit for bit."""

import numpy as np
import pytest
from small_collection import (
    HARD_PLANS,
    PLANS,
    TABLES,
    assert_same,
    built,
    collection,
    random_arrays,
    read,
)


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        *(("2x4", plan) for plan in HARD_PLANS),
        *(pytest.param("2x4", x, marks=pytest.mark.thorough) for x in PLANS if x not in HARD_PLANS),
        pytest.param("1x1", "mixed", marks=pytest.mark.thorough),
    ],
)
def test_new_rows_are_there_and_old_ones_come_back(mesh: str, plan: str):
    own = collection(mesh, plan)
    before, others = random_arrays(seed=1), random_arrays(seed=2)
    before["b"]["table"][0] = -0.0  # a sum with zeros would lose the sign
    random = np.random.default_rng(0)
    rows = {x.name: random.permutation(x.rows)[: x.rows // 2].astype(np.int32) for x in TABLES}
    rows["b"][0] = 0
    state = built(own, before)
    new = own.read_row_state(built(own, others), rows)
    new = {name: {k: x for k, x in by.items() if x.ndim} for name, by in new.items()}
    expected_old = own.read_row_state(state, rows)
    state, old = own.swap_rows(state, own.place_rows(rows, new))
    given_back = old.read()
    for name, numbers in rows.items():
        for key, array in new[name].items():
            assert given_back[name][key].tobytes() == expected_old[name][key].tobytes()
            assert given_back[name][key].dtype == array.dtype
            before[name][key][numbers] = others[name][key][numbers]
    assert_same(read(own, state), read(own, built(own, before)))


def test_tables_alone_leave_the_slots():
    own = collection("1x1")
    before, others = random_arrays(seed=1), random_arrays(seed=2)
    state = built(own, before)
    rows = {"b": np.array([3, 1])}
    state, old = own.swap_rows(
        state, own.place_rows(rows, {"b": {"table": others["b"]["table"][rows["b"]]}})
    )
    assert old.read().keys() == {"b"}
    assert old.read()["b"].keys() == {"table"}
    before["b"]["table"][rows["b"]] = others["b"]["table"][rows["b"]]
    assert_same(read(own, state), read(own, built(own, before)))
