import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from small_collection import (
    PLANS,
    TABLES,
    assert_same,
    built,
    collection,
    random_arrays,
    read,
)

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    EmbeddingCollection,
    Feature,
    Lookup,
    Piece,
    Plan,
    Table,
    automatic_plan,
    reshard,
    table_io,
)
from dlrm_jax.embedding.slab import OWN_SLAB_ROWS
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

PLACED = [
    ("1x1", "mixed"),
    ("2x4", "mixed"),
    ("2x4", "row_wise"),
    ("8x1", "mixed"),
    ("1x8", "row_wise"),
    ("1x8", "table_wise"),
    ("2x4", "fully_sharded"),
    ("4x2", "half_fully_sharded"),
    ("1x1", "fully_sharded"),
]


@pytest.mark.parametrize("placement", ["row_wise", "table_wise", "replicated"])
def test_on_one_shard_a_large_table_is_read_without_a_copy(placement):
    table = Table("large", OWN_SLAB_ROWS + 64, 1)  # which fill lines of a TPU
    plan = automatic_plan([table], 1, {"large": placement})
    args = ([table], [Feature("f")], [Lookup("f", "f", "large")], make_mesh("1x1"))
    own = EmbeddingCollection(*args, SGD(1.0), plan)
    state = own.from_arrays(lambda table: {"table": np.zeros((table.rows, 1), "f4")}, seed=0)
    ((_, _, array),) = own.iter_arrays(state)
    assert array is state.tables["large"]


@pytest.mark.parametrize(
    "others", [(5,), *(pytest.param(x, marks=pytest.mark.thorough) for x in ((1,), (3,)))], ids=str
)
def test_initial_values_depend_on_the_seed_and_the_table_alone(others):
    # More rows than one call of an initializer makes, and one shape under two names.
    tables = [
        Table("long", 16_500, 3),
        TABLES[1],
        TABLES[3],
        Table("c", 2, 1),
        Table("e", 29, 8),
        Table("f", 29, 8),
    ]
    features = [Feature(table.name) for table in tables]
    lookups = [Lookup(t.name, t.name, t.name) for t in tables]

    def initial(mesh, plan, seed, tables=tables):
        mesh = make_mesh(mesh)
        chosen = dict(zip([t.name for t in tables], PLANS[plan], strict=True))
        plan = automatic_plan(tables, mesh.shape["model"], chosen)
        own = EmbeddingCollection(tables, features, lookups, mesh, SGD(1.0), plan)
        return read(own, own.init(seed))

    first = initial("1x1", "mixed", 3)
    for i in others:
        mesh, plan = PLACED[i]
        assert_same(initial(mesh, plan, 3), first)
    other = initial("1x1", "mixed", 4)
    for table in tables:
        values = first[table.name]["table"]
        assert values.shape == (table.rows, table.dim)
        assert np.abs(values).max() <= (1 / table.rows) ** 0.5
        assert len(np.unique(values)) > 0.95 * values.size  # no chunk comes twice
        assert not np.any(values == other[table.name]["table"])
        for key, slot in first[table.name].items():
            assert key == "table" or not np.any(slot)
    assert not np.any(first["e"]["table"] == first["f"]["table"])


def test_given_arrays_are_read_back_to_the_bit():
    tables = collection(*PLACED[5])
    arrays = random_arrays()
    assert_same(read(tables, built(tables, arrays)), arrays)


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        ("2x4", "mixed"),
        pytest.param("1x8", "row_wise", marks=pytest.mark.thorough),
        pytest.param("2x4", "fully_sharded", marks=pytest.mark.thorough),
    ],
)
def test_large_tables_are_moved_in_chunks_of_rows(mesh, plan, monkeypatch):
    monkeypatch.setattr(reshard, "_CHUNK_ROWS", 2)
    tables = collection(mesh, plan)
    arrays = random_arrays()
    assert_same(read(tables, built(tables, arrays)), arrays)


def test_tables_move_between_meshes_and_plans_to_the_bit():
    """Each placement's arrays as they lie, not by way of NumPy, into the next one's."""
    expected = arrays = random_arrays()
    for i in (0, 4, 3, 1):
        tables = collection(*PLACED[i])
        arrays = {table.name: x for table, x in tables.to_arrays(built(tables, arrays))}
        assert_same(arrays, expected)
        for name, own in arrays.items():
            described = tables.array_specs(name)
            assert described.keys() == own.keys()
            for key, x in own.items():
                assert (x.shape, x.dtype) == (described[key].shape, described[key].dtype)


def test_equal_tables_of_other_collections_have_the_same_programs():
    first, second = collection(*PLACED[5]), collection(*PLACED[5])
    expected = read(first, first.init(77))
    with compilations() as compiled:
        found = read(second, second.init(77))
    assert_same(found, expected)
    assert not compiled
    assert_same(read(second, second.init(77)), expected)


def test_initial_values_by_a_function_of_a_user_are_drawn_anew():
    """It may read what has changed since."""
    scale = 1.0

    def init(key, shape, dtype):
        del key
        return jnp.full(shape, scale, dtype)

    for scale in (1.0, 2.0):
        own = EmbeddingCollection(
            [Table("t", 5, 4, init=init, trainable=False)],
            [Feature("t")],
            [Lookup("t", "t", "t")],
            make_mesh("1x2"),
        )
        ((_, arrays),) = own.to_arrays(own.init(0))
        np.testing.assert_array_equal(arrays["table"], np.full((5, 4), scale))


def test_what_is_not_given_gets_initial_values():
    tables = collection("1x1")
    initial = read(tables, tables.init(5))
    weights = random_arrays()["c"]["table"]
    state = tables.from_arrays(lambda t: {"table": weights} if t.name == "c" else {}, 5)
    initial["c"]["table"] = weights
    assert_same(read(tables, state), initial)


@dataclasses.dataclass
class Constant:
    """An initializer that can't be hashed."""

    value: float

    def __call__(self, key, shape, dtype):
        return jnp.full(shape, self.value, dtype)


def test_initializers_of_ones_own():
    values = {"a": 0.5, "b": 1.5, "c": 2.5}
    tables = [Table(name, 6, 4, init=Constant(value)) for name, value in values.items()]
    features = [Feature(name) for name in values]
    lookups = [Lookup(name, name, name) for name in values]
    collection = EmbeddingCollection(tables, features, lookups, make_mesh("2x4"), SGD(0.1))
    for table, arrays in collection.to_arrays(collection.init(0)):
        np.testing.assert_array_equal(arrays["table"], np.full((6, 4), values[table.name]))


def test_pieces_in_any_order():
    table = Table("a", 7, 4)
    plan = Plan(4, tuple(Piece("a", k, 4, (k + 1) % 4) for k in range(4)))
    mesh = make_mesh("2x4")
    collection = EmbeddingCollection(
        [table], [Feature("f")], [Lookup("f", "f", "a")], mesh, SGD(0.1), plan
    )
    weights = np.arange(28, dtype=np.float32).reshape(7, 4)
    state = collection.from_arrays(lambda table: {"table": weights}, seed=0)
    ids = np.arange(8, dtype=np.int32)[:, None] % 7
    pooled, _ = jax.jit(collection.lookup)(state, ids)
    np.testing.assert_array_equal(pooled["f"], weights[np.arange(8) % 7])
    ((_, arrays),) = collection.to_arrays(state)
    np.testing.assert_array_equal(arrays["table"], weights)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"table": np.zeros((37, 7))}, r"table a: table must have .* \(37, 8\), got \(37, 7\)"),
        ({"accumulator": np.zeros(37)}, r"table a: accumulator must have .*, got \(37,\)"),
        ({"table": np.full((37, 8), "1")}, "table a: table: expected real numbers, got dtype <U1"),
        ({"table": np.ones((37, 8), "c8")}, "table a: table: expected real .* got dtype complex64"),
        ({"table": {"C1": 1}}, "table a: table: expected an array, got dict"),
        ({"momentum": np.zeros(37)}, r"table a has table, accumulator, but 'momentum' was given"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    given = random_arrays() | {"a": arrays}
    with pytest.raises(UserError, match=message):
        collection().from_arrays(lambda table: given[table.name], 0)


@pytest.mark.parametrize("placement", ["row_wise", "column_wise", "replicated"])
def test_tables_larger_than_the_memory_are_refused_before_one_is_made(placement):
    tables = [Table("small", 10, 4), Table("huge", 2**29, 2**14)]  # 32 TiB
    plan = automatic_plan(tables, 4, {"huge": placement})
    features, lookups = [Feature("f")], [Lookup(table.name, "f", table.name) for table in tables]
    own = EmbeddingCollection(tables, features, lookups, make_mesh("2x4"), Adagrad(1.0), plan)
    share = {"row_wise": 16384, "column_wise": 16384, "replicated": 65536}[placement]
    expected = f"on each device, got {share}.0 GiB .*; the largest table is huge with 536,870,9"
    with pytest.raises(UserError, match=expected):
        own.init(seed=0)


def test_numbers_beyond_the_dtype_of_their_array_are_refused():
    """They would become infinite."""
    tables = collection()

    def given(table):
        return {"table": np.full((table.rows, table.dim), -1e300)} if table.name == "b" else {}

    message = r"^table b: table: expected numbers that fit into float32, got -1e\+300 at \[0, 0\]"
    with pytest.raises(UserError, match=message):
        tables.from_arrays(given, seed=0)


def test_a_source_gives_arrays_by_name():
    tables = collection()
    given = table_io.from_arrays
    with pytest.raises(UserError, match=r"source: expected arrays of table . by name, .* NoneType"):
        inspect.unwrap(given)(tables.axes, tables.layout, lambda table: None, 0, False)
