"""Packed rows against the same rows one by one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_collection import built, collection, random_arrays, random_batch, read

from dlrm_jax import backend
from dlrm_jax.embedding import (
    Adagrad,
    EmbeddingCollection,
    EmbeddingState,
    Feature,
    Lookup,
    RowOptimizer,
    RowWiseAdagrad,
    Table,
    packed_rows,
)
from dlrm_jax.embedding.packed_rows import columns, fills_no_lines, per_line
from dlrm_jax.mesh import make_mesh

WIDTHS = (5, 8, 24, 64, 96, 200)


@pytest.mark.parametrize(
    ("width", "side_by_side", "stored"),
    [
        *[(2, 64, 128), (5, 16, 128), (24, 4, 128), (33, 2, 128), (64, 2, 128)],
        *[(65, 1, 128), (127, 1, 128), (129, 1, 256), (200, 1, 256)],
    ],
)
def test_lines(width: int, side_by_side: int, stored: int):
    """A line has a power of two of places for rows, or a row has whole lines."""
    assert (per_line(width), columns(width)) == (side_by_side, stored)


def test_rows_that_are_packed():
    """Those that fill no lines, from a width on."""
    assert [w for w in (8, 48, 49, 64, 128, 200, 256) if fills_no_lines(w, 49)] == [49, 64, 200]
    assert not fills_no_lines(64, None)


_put = jax.jit(packed_rows.put, static_argnames="ascend")
_take = jax.jit(packed_rows.take, static_argnums=2)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_written_rows_are_read(width: int, lines: int, seed: int, ascend: bool):
    """Rows that are written are those that are read, the others stay as they are, bit by bit."""
    rng = np.random.default_rng(seed)
    rows = lines * per_line(width)
    before = rng.standard_normal((rows, width)).astype(np.float32)
    before[rng.random(before.shape) < 0.1] = -0.0
    count = 9
    # Numbers past the end are written nowhere; some may be equal.
    numbers = rng.permutation(rows + count)[:count]
    numbers[numbers >= rows] = rows + rng.integers(0, 3, np.count_nonzero(numbers >= rows))
    if ascend:
        numbers = np.sort(numbers)
    new = rng.standard_normal((count, width)).astype(np.float32)
    new[0] = np.inf
    expected = before.copy()
    expected[numbers[numbers < rows]] = new[numbers < rows]

    packed = packed_rows.pack(jnp.asarray(before))
    assert packed.shape == (lines, columns(width))
    found = _put(packed, jnp.asarray(numbers, jnp.int32), jnp.asarray(new), ascend=ascend)
    whole = np.asarray(packed_rows.unpack(found, width))
    np.testing.assert_array_equal(whole.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(packed_rows.unpack(np.asarray(found), width), expected)
    read = np.asarray(_take(found, jnp.asarray(numbers, jnp.int32)[:, None], width))[:, 0]
    padded = np.concatenate([expected, np.zeros((3, width), np.float32)])
    np.testing.assert_array_equal(read, padded[np.minimum(numbers, rows)])


def _packing(monkeypatch: pytest.MonkeyPatch, packed_from: int | None) -> None:
    """Emulated devices that store and sum rows as TPUs do."""
    record = dataclasses.replace(
        backend.CPU,
        row_sums="compacted",
        row_kernels="xla",
        native_kernels=False,
        packed_from=packed_from,
    )
    monkeypatch.setattr(backend, "CPU", record)


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        ("2x4", "mixed"),
        pytest.param("4x2", "half_fully_sharded", marks=pytest.mark.thorough),
        pytest.param("2x4", "column_wise", marks=pytest.mark.thorough),
        pytest.param("2x4", "fully_sharded", marks=pytest.mark.thorough),
        pytest.param("1x1", "replicated", marks=pytest.mark.thorough),
        pytest.param("8x1", "row_wise", marks=pytest.mark.thorough),
    ],
)
def test_packed_tables_are_trained_as_others(mesh: str, plan: str, monkeypatch: pytest.MonkeyPatch):
    """Vectors, tables and optimizer state are the same, and so are rows that are read."""
    ids, weights = random_batch()
    results: list[Any] = []
    for packed_from in (None, 2):
        _packing(monkeypatch, packed_from)
        tables = collection(mesh, plan)
        assert {slab.packed for slab in tables.layout.slabs if slab.width > 1} == {
            bool(packed_from)
        }

        def run(state: EmbeddingState, tables: EmbeddingCollection = tables):
            pooled, routed = tables.lookup(state, ids, weights)
            cotangents = jax.tree.map(lambda x: x + 1, pooled)
            return pooled, tables.update(state, routed, cotangents, 0)

        pooled, state = jax.jit(run)(built(tables, random_arrays()))
        rows = {"a": np.array([0, 36, 2]), "c": np.array([49, 1])}
        values = tables.read_row_state(state, rows)
        swapped = {"a": np.array([3, 4, 5]), "c": np.array([0, 48])}
        state = tables.write_rows(state, swapped, values)
        results.append((pooled, values, read(tables, state), tables.read_rows(state, swapped)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), *results)


@pytest.mark.parametrize("optimizer", [Adagrad(0.1), RowWiseAdagrad(0.1)])
def test_no_table_is_copied(optimizer: RowOptimizer, monkeypatch: pytest.MonkeyPatch):
    """Packed tables and their state are updated in place, and nothing as large is made."""
    _packing(monkeypatch, 49)
    tables = EmbeddingCollection(
        [Table("large", 2_000_000, 64)], [Feature("f", 2)], [Lookup("f", "f", "large")],
        make_mesh("1x1"), optimizer,
    )  # fmt: skip

    def step(state: EmbeddingState, ids: Any):
        pooled, routed = tables.lookup(state, ids)
        return tables.update(state, routed, pooled, 0)

    specs = tables.state_specs()
    assert specs.tables["large"].shape == (1_000_000, 128)
    ids = jax.ShapeDtypeStruct((256, 2), np.int32)
    memory = jax.jit(step, donate_argnums=0).lower(specs, ids).compile().memory_analysis()
    assert memory is not None
    table = 2_000_000 * 64 * 4
    assert memory.alias_size_in_bytes > table
    assert memory.temp_size_in_bytes < 0.01 * table
