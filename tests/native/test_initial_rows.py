"""The native initial values of tables and MLPs: the bits of JAX's, which other tests know."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from as_users import OPTIMIZED

from dlrm_jax.embedding import (
    Adagrad,
    EmbeddingCollection,
    Feature,
    Lookup,
    Piece,
    Plan,
    RowWiseAdagrad,
    Table,
    automatic_plan,
    kernel_dispatch,
    table_io,
)
from dlrm_jax.embedding.initial_values import INITIAL_ROWS, native_initial_slab
from dlrm_jax.embedding.reshard import slab_sharding
from dlrm_jax.mesh import make_mesh
from dlrm_jax.native.ops import Kernels

# More rows than share a key, numbers of rows that no mesh divides, and widths that fill no vector.
TABLES = [
    Table("long", 2 * INITIAL_ROWS + 37, 16),
    Table("same_slab", 101, 16),
    Table("few_rows", 3, 16),
    Table("narrow", INITIAL_ROWS + 9, 3),
    Table("wide", 57, 24, optimizer=Adagrad(0.1, initial_accumulator=0.5)),
    Table("frozen", 29, 8, trainable=False),
]
PLACEMENTS = {
    "row_wise": ["row_wise"] * 6,
    "table_wise": ["table_wise"] * 6,
    "column_wise": ["column_wise", "column_wise", "row_wise", "replicated", *["column_wise"] * 2],
    "fully_sharded": ["fully_sharded"] * 6,
    "on_some_shards": ["row_wise:1-2", "table_wise:3", *["row_wise:0-2"] * 2, *["replicated"] * 2],
}


def collection(kernels: Kernels, mesh: str, plan: str | Plan, tables=TABLES) -> EmbeddingCollection:
    features = [Feature(table.name) for table in tables]
    lookups = [Lookup(table.name, table.name, table.name) for table in tables]
    made = make_mesh(mesh)
    if isinstance(plan, str):
        chosen = dict(zip((t.name for t in tables), PLACEMENTS[plan], strict=True))
        plan = automatic_plan(tables, made.shape["model"], chosen)
    return EmbeddingCollection(
        tables, features, lookups, made, RowWiseAdagrad(0.1), plan, kernels=kernels
    )


def is_native(tables: EmbeddingCollection) -> bool:
    return kernel_dispatch.initial_values_in_use(tables.layout, tables.native) == "native"


def assert_same_as_jax(tables: EmbeddingCollection, seed: int) -> None:
    """Each device's arrays, padding included, are the bits that users get from JAX."""
    assert is_native(tables)
    state = tables.init(seed)
    for slab in tables.layout.slabs:
        found = {"table": state.tables[slab.name], **state.slots.get(slab.name, {})}
        make = functools.partial(table_io._make_slab, tables.axes, slab, seed)
        shardings = {key: x.sharding for key, x in found.items()}
        expected = jax.jit(make, out_shardings=shardings, compiler_options=OPTIMIZED)(
            {name: {} for name in slab.tables}
        )
        assert_same_bits(found, expected)


def assert_same_bits(left: dict[str, jax.Array], right: dict[str, jax.Array]) -> None:
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (x.sharding, x.dtype) == (y.sharding, y.dtype)
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True):
            a, b = np.asarray(a.data), np.asarray(b.data)
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize(
    ("mesh", "plan", "seed"),
    [
        pytest.param("1x1", "row_wise", 0, marks=pytest.mark.thorough),
        ("2x4", "row_wise", 2**40 + 7),
        pytest.param("2x4", "column_wise", 1, marks=pytest.mark.thorough),
        pytest.param("2x4", "on_some_shards", 2, marks=pytest.mark.thorough),
        pytest.param("4x2", "fully_sharded", 5, marks=pytest.mark.thorough),
        pytest.param("1x8", "table_wise", 3, marks=pytest.mark.thorough),
        pytest.param("8x1", "table_wise", -4, marks=pytest.mark.thorough),
    ],
)
def test_rows_and_slots_have_the_bits_of_jax(mesh: str, plan: str, seed: int):
    assert_same_as_jax(collection("native", mesh, plan), seed)


def test_pieces_in_any_order():
    table = [Table("a", 40_001, 5)]
    plan = Plan(4, tuple(Piece("a", k, 4, (k + 1) % 4) for k in range(4)))
    assert_same_as_jax(collection("native", "2x4", plan, table), 5)


@pytest.mark.parametrize("plan", ["row_wise", "column_wise", "on_some_shards"])
def test_each_device_makes_its_own_rows(plan: str):
    """Without a collective, and without an array of table size beside the result."""
    tables = collection("native", "2x4", plan)
    for slab in tables.layout.slabs:
        specs = tables.state_specs()
        shardings = {"table": slab_sharding(tables.axes, slab, specs.tables[slab.name].shape)}
        shardings |= {key: x.sharding for key, x in specs.slots.get(slab.name, {}).items()}
        make = functools.partial(native_initial_slab, tables.axes, slab, 0)
        compiled = jax.jit(make, out_shardings=shardings).lower({}).compile()
        text = compiled.as_text() or ""
        assert "dlrm_jax_uniform_rows" in text
        assert not re.search(r"all-|collective-|reduce-scatter", text)
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < max(1024, 4 * slab.rows)


def test_others_are_left_to_jax(monkeypatch: pytest.MonkeyPatch):
    def ones(key, shape, dtype):
        return jax.numpy.ones(shape, dtype)

    others = [
        Table("own", 7, 4, init=ones),
        Table("short", 7, 4, dtype="bfloat16"),
        Table("double", 7, 4, dtype="float16"),
        Table("usual", 7, 8),
    ]
    plan = automatic_plan(others, 1)
    tables = collection("native", "1x1", plan, others)
    used = kernel_dispatch.initial_values_in_use(tables.layout, tables.native)
    assert used == "native of usual; jax of own, short, double"
    with jax.threefry_partitionable(False):
        assert kernel_dispatch.initial_values_in_use(tables.layout, tables.native) == "jax"
    with jax.default_prng_impl("rbg"):
        assert kernel_dispatch.initial_values_in_use(tables.layout, tables.native) == "jax"


def test_given_rows_are_taken():
    tables, table = collection("native", "1x1", "row_wise"), TABLES[4]
    weights = np.arange(57 * 24, dtype=np.float32).reshape(57, 24)
    state = tables.from_arrays(lambda t: {"table": weights} if t.name == table.name else {}, 0)
    initial = tables.init(0)
    for name, array in initial.tables.items():
        expected = weights if name == table.name else array
        np.testing.assert_array_equal(state.tables[name], expected)
