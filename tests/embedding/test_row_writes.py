"""Rows of one state, with their optimizer state, written into another one of any mesh and plan."""

import numpy as np
import optax
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

from dlrm_jax.embedding import Table
from dlrm_jax.embedding.row_writes import CHUNK
from dlrm_jax.errors import UserError


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        *(("2x4", plan) for plan in HARD_PLANS),
        *(pytest.param("2x4", x, marks=pytest.mark.thorough) for x in PLANS if x not in HARD_PLANS),
        pytest.param("1x1", "mixed", marks=pytest.mark.thorough),
        pytest.param("8x1", "fully_sharded", marks=pytest.mark.thorough),
    ],
)
def test_they_are_those_that_were_read(mesh: str, plan: str):
    source, target = collection("2x4", "mixed"), collection(mesh, plan)
    given, expected = random_arrays(seed=1), random_arrays(seed=2)
    random = np.random.default_rng(0)
    rows = {
        x.name: np.sort(random.permutation(x.rows)[: x.rows // 2]).astype(np.int32)
        for x in TABLES
        if x.name != "f"
    }
    rows["b"] = rows["b"][:0]
    state, read_values = built(target, expected), source.read_row_state(built(source, given), rows)
    assert read_values["b"]["table"].shape == (0, 3)
    found = read(target, target.write_rows(state, rows, read_values))
    for name, numbers in rows.items():
        for key, array in given[name].items():
            expected[name][key][numbers] = array[numbers]
            np.testing.assert_array_equal(read_values[name][key], array[numbers])
    # SGD's tables have no slots there, and Adam's has its count.
    assert_same({x: {k: found[x][k] for k in expected[x]} for x in expected}, expected)


def test_more_rows_than_a_chunk_of_16_bits_and_counts():
    rows = CHUNK + 37
    tables = [Table("a", rows, 8, dtype="bfloat16", optimizer=optax.adam(0.1)), *TABLES[1:]]
    source, target = (collection("2x4", plan, tables) for plan in ("mixed", "replicated"))
    state = source.init(1)
    name = source.layout.slab_of("a").name
    counts = {key: x + 7 for key, x in state.slots[name].items() if not x.ndim}
    state.slots[name].update(counts)
    numbers = {"a": np.arange(rows, dtype=np.int32)}
    values = source.read_row_state(state, numbers)
    written = target.write_rows(target.init(2), numbers, values)
    again = target.read_row_state(written, numbers)
    assert counts
    for key, array in values["a"].items():
        assert array.dtype == again["a"][key].dtype
        assert array.tobytes() == again["a"][key].tobytes()
    assert float(again["a"][next(iter(counts))]) == 7


def test_what_does_not_fit_is_refused():
    own = collection("1x1")
    values = own.read_row_state(own.init(0), {"b": np.array([2, 3])})
    with pytest.raises(UserError, match="expected numbers from 0 to 4 of table b, got 2 to 5"):
        own.write_rows(own.init(0), {"b": np.array([2, 5])}, values)
    with pytest.raises(UserError, match=r"rows of table b: expected an array of int.* float64"):
        own.write_rows(own.init(0), {"b": np.array([2.0, 3.0])}, values)
    with pytest.raises(UserError, match="values: expected table of 1 rows of table b, got"):
        own.write_rows(own.init(0), {"b": np.array([2])}, values)
