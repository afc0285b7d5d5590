"""A small collection that has a bit of everything: its description, arrays, state and batches."""

import numpy as np

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    Plan,
    RowWiseAdagrad,
    Table,
    automatic_plan,
)
from dlrm_jax.mesh import make_mesh

B = 16


def halves(ids):
    return ids // 2


# Rows that don't divide the shards, fewer rows than shards, and widths that do or don't divide
# the devices.
TABLES = [
    Table("a", 37, 8, optimizer=Adagrad(0.1)),
    Table("b", 5, 3, optimizer=RowWiseAdagrad(0.1)),
    Table("c", 50, 16, optimizer=Adam(0.1)),
    Table("d", 11, 1, optimizer=RowWiseAdagrad(0.1)),
    Table("e", 29, 8),
    Table("f", 13, 8, trainable=False),
]
FEATURES = [Feature("one"), Feature("three", 3), Feature("two", 2), Feature("other", 3)]
LOOKUPS = [
    Lookup("a", "three", "a"),
    Lookup("a_sequence", "other", "a", "none", id_map=halves),  # a shared table
    Lookup("b", "one", "b"),
    Lookup("c_halves", "two", "c", "mean", id_map=halves),
    Lookup("d", "three", "d"),
    Lookup("e", "two", "e", "mean"),
    Lookup("f", "other", "f"),
]
PLANS = {
    "mixed": ["row_wise", "row_wise", "table_wise", "replicated", "table_wise", "replicated"],
    "column_wise": ["column_wise", "replicated", "column_wise", "row_wise", *["column_wise"] * 2],
    "row_wise": ["row_wise"] * 6,
    "on_some_shards": ["row_wise:1-2", "table_wise:3", "row_wise:0-2", *["row_wise:2-3"] * 3],
    "table_wise": ["table_wise"] * 6,
    "replicated": ["replicated"] * 6,
    "fully_sharded": ["fully_sharded"] * 6,
    # Each further slab over all devices takes a second to compile.
    "half_fully_sharded": [
        *["fully_sharded", "row_wise", "row_wise"],
        *["replicated", "table_wise", "fully_sharded"],
    ],
}
HARD_PLANS = ("mixed", "column_wise", "half_fully_sharded")
"""Those with each placement, beside others."""


def collection(
    mesh_shape="2x4",
    plan: str | Plan = "mixed",
    tables=TABLES,
    lookups=LOOKUPS,
    optimizer: SGD | None = SGD(1.0),  # noqa: B008
):
    mesh = make_mesh(mesh_shape)
    if isinstance(plan, str):
        chosen = dict(zip([t.name for t in tables], PLANS[plan], strict=True))
        plan = automatic_plan(tables, mesh.shape["model"], chosen)
    return EmbeddingCollection(tables, FEATURES, lookups, mesh, optimizer, plan)


def random_arrays(tables=TABLES, seed=0):
    """Logical weights and slots of every table, none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = {"row": lambda t: (t.rows,), "element": lambda t: (t.rows, t.dim)}
    arrays = {}
    for table in tables:
        slots = {} if table.optimizer is None else table.optimizer.slots
        arrays[table.name] = {"table": rng.normal(size=(table.rows, table.dim)).astype("f4")} | {
            name: rng.uniform(1, 2, size=shapes[kind](table)).astype("f4")
            for name, kind in slots.items()
        }
    return arrays


def built(tables, arrays):
    """The state of a collection that holds these arrays."""
    return tables.from_arrays(lambda table: arrays[table.name], 0)


def read(tables, state):
    return {
        table.name: {key: np.asarray(x) for key, x in arrays.items()}
        for table, arrays in tables.to_arrays(state)
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, arrays in left.items():
        assert arrays.keys() == right[name].keys()
        for key, x in arrays.items():
            assert x.dtype == right[name][key].dtype
            np.testing.assert_array_equal(x, right[name][key], err_msg=f"{name}.{key}")


def random_batch(seed=0, batch=B, features=FEATURES, rows=5):
    """Ids that every table has, a third of them absent, and weights."""
    rng = np.random.default_rng(seed)
    columns = sum(feature.max_ids for feature in features)
    ids = rng.integers(0, rows, size=(batch, columns)).astype(np.int32)
    ids[rng.random(ids.shape) < 0.3] = -1
    ids[1] = -1  # a sample of empty bags
    ids[2] = rows - 1  # one of equal ids
    return ids, rng.normal(size=ids.shape).astype("f4")
