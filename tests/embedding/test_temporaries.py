"""The estimated bytes of a step besides tables, against those of compiled programs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dlrm_jax import backend
from dlrm_jax.embedding import (
    EmbeddingCollection,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    Workload,
)
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.meshes import plan_on_mesh
from dlrm_jax.embedding.planning.workload import bags_of
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import batch_sharding, make_mesh

BATCH = 8192
OPTIMIZER = RowWiseAdagrad(0.1)
TABLES = [Table(f"t{i}", 2_000_000, 64) for i in range(3)]
FEATURES = [Feature("t0", 20), Feature("t1", 3), Feature("t2", 1)]
LOOKUPS = [Lookup(table.name, table.name, table.name) for table in TABLES]


def planned(placement, limits, batch=BATCH, device="cpu", fused=True):
    return plan_on_mesh(
        TABLES,
        FEATURES,
        LOOKUPS,
        4,
        {table.name: placement for table in TABLES},
        optimizer=OPTIMIZER,
        workload=Workload(batch, 2, bags=bags_of(FEATURES, LOOKUPS), fused=fused),
        device=DEVICES[device],
        limits=limits,
    )


@pytest.mark.parametrize("placement", ["table_wise", "column_wise", "fully_sharded"])
def test_the_estimate_is_near_what_a_compiled_program_needs(
    placement, monkeypatch: pytest.MonkeyPatch
):
    # With `--accelerator_rows`, a CPU writes what is one loop on accelerators.
    scattering = dataclasses.replace(backend.CPU, row_sums="scatter", packed_from=None)
    monkeypatch.setattr(backend, "CPU", scattering)
    mesh, found = make_mesh("2x4"), planned(placement, Limits())
    collection = EmbeddingCollection(
        TABLES, FEATURES, LOOKUPS, mesh, OPTIMIZER, found.plan, kernels="jax"
    )

    def step(state, ids, count):
        pooled, context = collection.lookup(state, ids)
        return collection.update(state, context, pooled, count)

    ids = jax.ShapeDtypeStruct((BATCH, 24), jnp.int32, sharding=batch_sharding(mesh))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jax.jit(step, donate_argnums=0).lower(collection.state_specs(), ids, count).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert 0.6 <= found.temporaries / memory.temp_size_in_bytes <= 1.2


def test_kernels_of_gpus_write_no_gradients_of_ids():
    none = Limits(memory=2**40)
    ids = BATCH // 2 * 24  # of each of two groups, one of whose shards has a table
    of_kernels = planned("table_wise", none, device="h100").temporaries
    by_xla = planned("column_wise", none, device="h100").temporaries
    assert of_kernels < 4 * 64 * ids < by_xla


def test_gradients_on_tpus_are_in_tiles():
    plan = [planned("column_wise", Limits(memory=2**40), device=x) for x in ("h100", "tpu_v5e")]
    gpu, tpu = (x.temporaries for x in plan)
    ids = BATCH // 2 * 24
    assert gpu < tpu
    assert tpu > 2 * 4 * 128 * ids


def test_tables_leave_memory_for_temporaries():
    found = planned("fully_sharded", Limits())
    limits = Limits(memory=1.01 * found.balance.device_bytes)
    assert planned("fully_sharded", limits).plan == found.plan
    message = r"memory: expected at most .* that a step makes .* on mesh 2x4; use more devices or a"
    with pytest.raises(UserError, match=message):
        planned("fully_sharded", limits, 8 * BATCH)


def test_without_kernels_there_are_gradients_of_ids():
    given = "table_wise", Limits(memory=2**40)
    fused, by_xla = (planned(*given, device="h100", fused=x).temporaries for x in (True, False))
    assert by_xla > fused + 4 * 64 * BATCH // 2 * 24
