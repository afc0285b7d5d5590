import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.rounding import round_randomly
from dlrm_jax.embedding.storage_dtype import decode
from dlrm_jax.mesh import make_mesh

ALL_BITS = np.arange(2**16, dtype=np.uint16)
B = 16
RATE = 2**-12  # less than the distance between most of the weights' neighbours

TABLES = [
    Table("a", 37, 8, "bfloat16"),
    Table("b", 50, 8, "bfloat16"),
    Table("c", 11, 8, "bfloat16", optimizer=SGD(RATE)),
]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_either_neighbour_with_the_probability_of_its_nearness(value):
    values = jnp.full((2**16, 1), value, jnp.float32)
    found = np.asarray(round_randomly(values, jnp.asarray(ALL_BITS)[:, None]))[:, 0]
    bits = int(np.float32(value).view(np.uint32))
    toward_zero = np.uint32(bits >> 16 << 16).view(np.float32)
    away = np.uint32(((bits >> 16) + 1) << 16).view(np.float32)
    share = bits & 0xFFFF  # of 2^16, the way from the one nearer zero
    found = found.astype(np.float32)
    assert np.count_nonzero(found == away) == share
    assert np.count_nonzero(found == toward_zero) == 2**16 - share


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_not_finite_stays(value):
    values = jnp.full((2**16, 1), value, jnp.float32)
    found = np.asarray(round_randomly(values, jnp.asarray(ALL_BITS)[:, None]))
    np.testing.assert_array_equal(found.astype(np.float32), np.asarray(values))


def trained(shape: str, placements, tables=TABLES, steps: int = 3) -> dict[str, np.ndarray]:
    """The tables after updates that are sums of equal powers of two, exact in any order."""
    mesh = make_mesh(shape)
    names = [table.name for table in tables]
    collection = EmbeddingCollection(
        tables,
        [Feature(name, 3) for name in names],
        [Lookup(name, name, name) for name in names],
        mesh,
        SGD(RATE),
        automatic_plan(tables, mesh.shape["model"], dict(zip(names, placements, strict=True))),
    )
    state = collection.init(0)
    rng = np.random.default_rng(0)

    @jax.jit
    def step(state, ids, count):
        pooled, context = collection.lookup(state, ids)
        return collection.update(state, context, jax.tree.map(jnp.ones_like, pooled), count)

    for count in range(steps):
        ids = rng.integers(-1, 11, (B, 3 * len(tables)), dtype=np.int32)
        state = jax.block_until_ready(step(state, ids, count))
    return {t.name: np.asarray(arrays["table"]) for t, arrays in collection.to_arrays(state)}


@pytest.mark.thorough
def test_bits_depend_on_neither_mesh_nor_plan():
    wanted = trained("1x1", ("table_wise", "row_wise", "replicated"))
    for mesh, placements in [
        ("2x4", ("replicated", "row_wise", "table_wise")),
        ("2x4", ("row_wise", "column_wise", "row_wise:1-2")),
        ("1x8", ("column_wise", "column_wise", "column_wise")),
    ]:
        found = trained(mesh, placements)
        for name, weights in wanted.items():
            np.testing.assert_array_equal(found[name], weights, err_msg=f"{name} {placements}")


def test_shards_without_rows_of_a_table_draw_as_others_do():
    tables = [Table("tiny", 2, 8, "bfloat16"), Table("big", 40, 8, "bfloat16")]
    wanted = trained("1x1", ("replicated", "replicated"), tables)
    for mesh, placements in (
        ("1x4", ("row_wise", "table_wise:3")),  # shard 3 has no row of tiny
        ("2x4", ("fully_sharded", "fully_sharded")),  # of which 6 devices have no row
    ):
        found = trained(mesh, placements, tables)
        for name, weights in wanted.items():
            np.testing.assert_array_equal(found[name], weights, err_msg=f"{name} {mesh}")


def test_a_rate_of_64_bits_rounds_as_one_of_32():
    def updated(rate) -> np.ndarray:
        table = Table("a", 11, 8, "bfloat16")
        collection = EmbeddingCollection(
            [table], [Feature("a")], [Lookup("a", "a", "a")], make_mesh("1x1"), SGD(rate)
        )

        @jax.jit
        def step(state):
            pooled, context = collection.lookup(state, jnp.arange(8, dtype="int32")[:, None])
            return collection.update(state, context, jax.tree.map(jnp.ones_like, pooled), 0)

        return np.asarray(step(collection.init(0)).tables["a"])

    with jax.enable_x64(True):
        np.testing.assert_array_equal(updated(np.float64(RATE)), updated(RATE))


def test_bits_differ_between_tables_rows_columns_and_steps():
    """All weights are 1 and all updates 1/1024, a quarter of the distance to the next bfloat16."""

    def ones(key, shape, dtype):
        return jnp.ones(shape, dtype)

    def moved(name: str, steps: int) -> np.ndarray:
        table = Table(name, 128, 64, "bfloat16", init=ones)
        collection = EmbeddingCollection(
            [table], [Feature("x", 128)], [Lookup("x", "x", name)], make_mesh("1x1"), SGD(2**-10)
        )
        state = collection.init(0)
        ids = jnp.arange(128, dtype=jnp.int32)[None]

        @jax.jit
        def step(state, count):
            pooled, context = collection.lookup(state, ids)
            return collection.update(state, context, jax.tree.map(jnp.ones_like, pooled), count)

        for count in range(steps):
            state = step(state, count)
        return np.asarray(decode(state.tables[name], np.dtype("bfloat16"))) < 1

    first, other = moved("x", 1), moved("y", 1)
    for maps in (first, other):
        assert 0.2 < maps.mean() < 0.3
        assert 0 < maps.mean(axis=0).min() < maps.mean(axis=0).max() < 0.5
        assert 0 < maps.mean(axis=1).min() < maps.mean(axis=1).max() < 0.5
    assert 0.3 < (first != other).mean() < 0.45  # 2 · 1/4 · 3/4 if they are independent
    again = moved("x", 2)
    assert 0.38 < again.mean() < 0.5  # 1 - (3/4)^2: those that stayed are drawn anew
