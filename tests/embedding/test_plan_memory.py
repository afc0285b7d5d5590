"""A plan's bytes are those that a compiled program is given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    Workload,
    automatic_plan,
)
from dlrm_jax.embedding.planning.balance import balance
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.workload import bags_of
from dlrm_jax.mesh import batch_sharding, make_mesh

BATCH = 64
# Millions of rows, but no array of them: the program is compiled for shapes.
TABLES = [
    Table("large", 3_000_000, 16),
    Table("spread", 900_000, 16),
    Table("whole", 500_000, 16),
    Table("columns", 400_000, 16, optimizer=Adagrad(0.1)),
    Table("everywhere", 50_000, 16),
    Table("frozen", 100_000, 8, trainable=False),
    Table("short", 200_000, 8, dtype="bfloat16"),
    Table("stateless", 300_000, 8, optimizer=SGD(0.1)),
]
PLACED = {
    "spread": "row_wise:0-1",
    "whole": "table_wise:2",
    "columns": "column_wise",
    "everywhere": "replicated",
}


@pytest.mark.thorough  # by default `tests/cli/test_compile.py` prints both
def test_tables_and_state_are_what_the_step_is_given():
    mesh = make_mesh("2x4")
    features = [Feature(t.name, 1 + i % 2) for i, t in enumerate(TABLES)]
    lookups = [Lookup(t.name, t.name, t.name) for t in TABLES]
    workload = Workload(BATCH, 2, bags=bags_of(features, lookups))
    optimizer = RowWiseAdagrad(0.1)
    plan = automatic_plan(TABLES, 4, PLACED, optimizer=optimizer, workload=workload)
    collection = EmbeddingCollection(TABLES, features, lookups, mesh, optimizer, plan)

    def step(state, ids, count):
        pooled, context = collection.lookup(state, ids)
        return collection.update(state, context, pooled, count)

    columns = sum(feature.max_ids for feature in features)
    ids = jax.ShapeDtypeStruct((BATCH, columns), jnp.int32, sharding=batch_sharding(mesh))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jax.jit(step, donate_argnums=0).lower(collection.state_specs(), ids, count).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    given = memory.argument_size_in_bytes - BATCH // 8 * columns * 4 - 4

    found = balance(collection.layout, plan, workload, DEVICES["cpu"])
    assert found.device_bytes == pytest.approx(given, rel=1e-3)
    total = sum(table.nbytes for table in TABLES if table.name not in PLACED)
    assert given > total / 4
