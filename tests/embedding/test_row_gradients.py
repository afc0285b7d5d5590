import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_collection import (
    FEATURES,
    LOOKUPS,
    TABLES,
    built,
    collection,
    random_arrays,
    random_batch,
    read,
)

from dlrm_jax import backend
from dlrm_jax.embedding import (
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    Table,
    automatic_plan,
    row_sums,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

dedup = jax.jit(row_sums.dedup, static_argnums=0)


def check_representatives(size: int, rows: np.ndarray) -> None:
    found = np.asarray(dedup(size, rows.astype(np.int32)))
    none = rows >= size
    np.testing.assert_array_equal(found[none], rows.size)
    np.testing.assert_array_equal(rows[found[~none]], rows[~none])
    # One for each row, and it represents itself.
    assert len(np.unique(found[~none])) == len(np.unique(rows[~none]))
    np.testing.assert_array_equal(found[found[~none]], found[~none])


@given(
    st.sampled_from([1, 7, 100, 1_000_003, 2**31 - 1]),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30),
    st.lists(st.integers(0, 29), min_size=30, max_size=30),
    st.sampled_from([1, 11, 30]),  # each is a program of its own
)
def test_any_rows_have_one_representative_each(size, pool, picks, length):
    check_representatives(size, np.array([pool[i % len(pool)] for i in picks[:length]]))


@pytest.mark.parametrize("size", [3_000, 40_000, 10_000_000])
def test_many_rows_settle_though_their_hashes_collide(size):
    # Of 40,000 rows in 2^19 entries, above a thousand meet another.
    rows = np.random.default_rng(0).integers(0, size + size // 8, 40_000)
    check_representatives(size, rows)


def test_rows_made_to_collide_settle():
    # All of these have the same hash in the first round: multiples of the golden ratio's
    # inverse (mod 2^32), whose products have the same upper bits.
    inverse = pow(int(row_sums._GOLDEN), -1, 2**32)
    rows = np.array([k * inverse % 2**32 for k in range(4000)])
    rows = rows[rows < 2**31 - 1]
    assert len(rows) > 1000
    check_representatives(2**31 - 1, rows)


# More rows on a shard than a batch has ids, so that touched rows are gathered, and fewer, so
# that they are summed densely.
SPARSE = [
    Table("a", 6007, 8, "float64"),
    Table("b", 5, 3, "float64"),
    Table("c", 1999, 16, "float64"),
    Table("d", 1501, 1, "float64"),
    Table("e", 2903, 8, "float64"),
    Table("f", 13, 8, "float64"),
]


def scalar(pooled):
    """Some function of all vectors in which no two entries play the same part."""
    total = 0.0
    for name in sorted(pooled):
        x = pooled[name]
        total += jnp.sum(jnp.sin(x * jnp.arange(1, x.size + 1).reshape(x.shape)))
    return total


def pooled_densely(weights, ids, id_weights):
    """Through ``table[ids]``, for jax to differentiate."""
    ends = np.cumsum([feature.max_ids for feature in FEATURES])
    columns = {f.name: slice(end - f.max_ids, end) for f, end in zip(FEATURES, ends, strict=True)}
    pooled = {}
    for lookup in LOOKUPS:
        own = ids[:, columns[lookup.feature]]
        w = (own >= 0) * (1.0 if id_weights is None else id_weights[:, columns[lookup.feature]])
        rows = jnp.maximum(own if lookup.id_map is None else lookup.id_map(own), 0)
        vectors = weights[lookup.table][rows] * w[:, :, None]
        if lookup.pooling != "none":
            vectors = vectors.sum(axis=1)
        if lookup.pooling == "mean":
            total = w.sum(axis=1, keepdims=True)
            vectors = jnp.where(total == 0, 0, vectors / jnp.where(total == 0, 1, total))
        pooled[lookup.name] = vectors
    return pooled


@functools.cache
def problem(weighted):
    """Weights of all tables, ids, their weights, and the gradients of all of `scalar`."""
    rng = np.random.default_rng(7)
    weights = {t.name: rng.normal(size=(t.rows, t.dim)) for t in SPARSE}
    ids, id_weights = random_batch(8)
    # Far apart in the large tables, with repetition within and across devices.
    ids[:, 1:4] = np.where(ids[:, 1:4] >= 0, ids[:, 1:4] * 301, -1)
    ids[:, 6:] = np.where(ids[:, 6:] >= 0, ids[:, 6:] * 3, -1)
    id_weights = id_weights.astype(np.float64) if weighted else None
    dense = jax.jit(jax.grad(lambda w: scalar(pooled_densely(w, ids, id_weights))))(weights)
    return weights, ids, id_weights, jax.tree.map(np.asarray, dense)


@pytest.mark.parametrize(
    ("plan", "weighted", "sums"),
    [
        pytest.param("mixed", False, True, marks=pytest.mark.thorough),
        pytest.param("mixed", True, False, marks=pytest.mark.thorough),
        *(
            # Some tables of the others are placed so, or all.
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                ("row_wise", True, True),
                ("table_wise", False, False),
                ("replicated", True, True),
                ("fully_sharded", True, False),
            )
        ),
        pytest.param("column_wise", True, True, marks=pytest.mark.thorough),
        pytest.param("on_some_shards", True, False, marks=pytest.mark.thorough),
        ("half_fully_sharded", True, True),
    ],
)
def test_row_gradients_are_those_of_dense_autodiff(plan, weighted, sums):
    with jax.enable_x64(True):
        tables = collection(plan=plan, tables=SPARSE)
        weights, ids, id_weights, dense = problem(weighted)
        state = tables.from_arrays(lambda table: {"table": weights[table.name]}, 0)

        def step(state, ids, id_weights):
            pooled, context = tables.lookup(state, ids, id_weights)
            cotangents = jax.grad(scalar)(pooled)
            gradients = tables.coalesce(tables.send_cotangents(context, cotangents), sums)
            norm = gradients.squared_norm() if sums else jnp.zeros(())
            return tables.apply(state, gradients, jnp.zeros((), jnp.int32)), norm

        new, norm = jax.jit(step)(state, ids, id_weights)
        for table, arrays in tables.to_arrays(new):
            gradient = weights[table.name] - np.asarray(arrays["table"])
            np.testing.assert_allclose(
                gradient, dense[table.name], rtol=1e-9, atol=1e-12, err_msg=table.name
            )
            touched = np.any(dense[table.name] != 0, axis=1)
            assert touched.sum() > 0
            np.testing.assert_array_equal(
                np.asarray(arrays["table"])[~touched], weights[table.name][~touched]
            )
        if sums:
            expected = sum(np.sum(np.square(g)) for g in dense.values())
            np.testing.assert_allclose(norm, expected, rtol=1e-12)


def test_a_norm_needs_sums(monkeypatch):
    scattering = dataclasses.replace(backend.CPU, row_sums="scatter")
    monkeypatch.setattr(backend, "CPU", scattering)  # others sum always
    tables = collection()

    def norm(state, ids):
        pooled, context = tables.lookup(state, ids)
        return tables.coalesce(tables.send_cotangents(context, pooled)).squared_norm()

    with pytest.raises(UserError, match=r"a norm needs coalesce\(.*sum_duplicates"):
        jax.eval_shape(norm, tables.state_specs(), random_batch()[0])


def test_frozen_tables_have_no_gradient_and_stay():
    tables = collection()
    arrays = random_arrays()
    state = built(tables, arrays)
    ids, _ = random_batch()

    def step(state, ids):
        pooled, context = tables.lookup(state, ids)
        return tables.update(state, context, pooled, jnp.asarray(0))

    new = read(tables, jax.jit(step)(state, ids))
    for table in TABLES:
        same = np.array_equal(new[table.name]["table"], arrays[table.name]["table"])
        assert same == (not table.trainable)
    assert "accumulator" not in new["f"]


def test_a_batch_whose_positions_would_wrap_is_refused():
    tables = [Table("a", 2**30, 2), Table("b", 5, 2)]
    lookups = [Lookup("a", "f", "a"), Lookup("b", "f", "b")]
    plan = automatic_plan(tables, 1, {"a": "replicated", "b": "replicated"})
    mesh = make_mesh("2x1")  # copies see the rows of all samples
    c = EmbeddingCollection(tables, [Feature("f", 2)], lookups, mesh, Adam(0.1), plan)

    def step(state, ids):
        pooled, residuals = c.lookup(state, ids)
        return c.update(state, residuals, pooled, 0)

    def batch(size):
        return jax.ShapeDtypeStruct((size, 2), jnp.int32)

    jax.eval_shape(step, c.state_specs(), batch(2**29 - 2))
    with pytest.raises(
        UserError, match=r"table\(s\) a: one step gives .* 1,073,741,824 ids .*2\^31"
    ):
        jax.eval_shape(step, c.state_specs(), batch(2**29))
