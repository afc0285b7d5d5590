"""Some rows of a state are those of its whole tables, on every mesh and plan."""

import numpy as np
import pytest
from small_collection import HARD_PLANS, PLANS, TABLES, collection, random_arrays

from dlrm_jax.embedding import Table
from dlrm_jax.errors import UserError


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        *(("2x4", plan) for plan in HARD_PLANS),
        *(pytest.param("2x4", x, marks=pytest.mark.thorough) for x in PLANS if x not in HARD_PLANS),
        pytest.param("1x1", "mixed", marks=pytest.mark.thorough),
        pytest.param("8x1", "fully_sharded", marks=pytest.mark.thorough),
        pytest.param("1x8", "half_fully_sharded", marks=pytest.mark.thorough),
    ],
)
def test_they_are_those_of_whole_tables(mesh: str, plan: str):
    own, arrays = collection(mesh, plan), random_arrays()
    state = own.from_arrays(lambda table: arrays[table.name], seed=0)
    random = np.random.default_rng(0)
    rows = {x.name: random.integers(0, x.rows, 20).astype(np.int32) for x in TABLES}
    rows["b"] = rows["b"][:0]
    found = own.read_rows(state, rows)
    for name, numbers in rows.items():
        np.testing.assert_array_equal(found[name], arrays[name]["table"][numbers])


def test_rows_of_16_bits_keep_their_bits():
    tables = [
        Table("a", 37, 8, dtype="bfloat16", optimizer=TABLES[0].optimizer),
        *TABLES[1:],
    ]
    own, arrays = collection("2x4", "mixed", tables), random_arrays()
    state = own.from_arrays(lambda table: arrays[table.name], seed=0)
    whole = {table.name: np.asarray(found["table"]) for table, found in own.to_arrays(state)}
    found = own.read_rows(state, {"a": np.arange(37)})["a"]
    assert found.dtype == whole["a"].dtype
    np.testing.assert_array_equal(found.view(np.uint16), whole["a"].view(np.uint16))


def test_a_row_out_of_range():
    own = collection("1x1")
    with pytest.raises(UserError, match="expected numbers from 0 to 4 of table b, got 2 to 5"):
        own.read_rows(own.init(0), {"b": np.array([2, 5])})


def test_rows_that_are_no_integers():
    """Row 2.5 is of no piece of a table: what is read for it would be uninitialized memory."""
    own = collection("2x4")
    state = own.init(0)
    for read in (own.read_rows, own.read_row_state):
        with pytest.raises(UserError, match=r"rows of table b: expected an array of int.* float64"):
            read(state, {"b": np.array([2.5])})
        with pytest.raises(UserError, match=r"rows of table b: .* shape \[N\], got \[1, 1\]"):
            read(state, {"b": np.array([[2]])})
    listed = own.read_row_state(state, {"b": [2, 0]})["b"]["table"]
    np.testing.assert_array_equal(listed, own.read_rows(state, {"b": np.array([2, 0])})["b"])
