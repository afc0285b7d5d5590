"""The step of rows compiled for an H100, where the compiler for it is installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dlrm_jax.embedding import Adam, EmbeddingCollection, Feature, Lookup, Plan, Table
from dlrm_jax.embedding.owner_exchange import LATER_ROUNDS
from dlrm_jax.embedding.plan import fully_sharded
from dlrm_jax.mesh import batch_sharding
from dlrm_jax.programs.hlo import program_of
from dlrm_jax.programs.report import operations
from dlrm_jax.targets import lacks, target_mesh

B, IDS, ROWS, WIDTH = 256, 50, 20_000, 24
TRITON = "custom-call __gpu$xla.gpu.triton"


@pytest.fixture(autouse=True)
def _programs_are_kept_afterwards():
    least: Any = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.skipif(bool(lacks("h100")), reason=lacks("h100") or "")
def test_no_array_has_a_vector_for_each_id():
    mesh = target_mesh("h100", (1, 1))
    tables = [Table("a", ROWS, WIDTH)]
    given = [Feature("a", IDS)], [Lookup("a", "a", "a")], mesh, Adam(0.1)
    collection = EmbeddingCollection(tables, *given)
    assert set(collection.kernels_in_use.values()) == {"triton"}

    def run(state: Any, ids: Any) -> Any:
        pooled, routed = collection.lookup(state, ids)
        cotangents = jax.tree.map(jnp.square, pooled)
        return collection.update(state, routed, cotangents, 0)

    ids = jax.ShapeDtypeStruct((B, IDS), "int32", sharding=NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(run, donate_argnums=0).lower(collection.state_specs(), ids).compile()
    found = operations(program_of(compiled))
    assert found[TRITON] == 3
    assert not {"scatter", "while"} & found.keys()
    text = compiled.as_text() or ""
    assert f"[{B * IDS},{WIDTH}]" not in text
    assert f"[{B},1,{IDS},{WIDTH}]" not in text
    memory: Any = compiled.memory_analysis()
    table = 4 * ROWS * WIDTH
    assert memory.alias_size_in_bytes >= 3 * table
    assert memory.temp_size_in_bytes < table / 2


@pytest.mark.skipif(bool(lacks("h100")), reason=lacks("h100") or "")
def test_owners_update_rows_in_place_in_each_round():
    mesh, rows = target_mesh("h100", (2, 2)), 400_000
    given = [Table("a", rows, WIDTH)], [Feature("a", 4)], [Lookup("a", "a", "a")], mesh, Adam(0.1)
    collection = EmbeddingCollection(*given, Plan(2, fully_sharded("a", 0.5, 0.5)))
    assert collection.kernels_in_use["updates"] == "triton"

    def run(state: Any, ids: Any) -> Any:
        pooled, routed = collection.lookup(state, ids)
        return collection.update(state, routed, jax.tree.map(jnp.square, pooled), 0)

    ids = jax.ShapeDtypeStruct((B, 4), "int32", sharding=batch_sharding(mesh))
    compiled = jax.jit(run, donate_argnums=0).lower(collection.state_specs(), ids).compile()
    text = compiled.as_text() or ""
    kernels = [line for line in text.splitlines() if '"__gpu$xla.gpu.triton"' in line]
    assert len([line for line in kernels if LATER_ROUNDS in line]) == 2
    assert len(kernels) > 3
    memory: Any = compiled.memory_analysis()
    table = rows * WIDTH  # 4 bytes a number, a fourth of the rows
    assert memory.alias_size_in_bytes >= 3 * table
    assert memory.temp_size_in_bytes < table / 4
