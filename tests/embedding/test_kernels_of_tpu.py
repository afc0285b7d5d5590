"""The step of rows compiled for a TPU, where the compiler for it is installed."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dlrm_jax.embedding import Adam, EmbeddingCollection, Feature, Lookup, RowWiseAdagrad, Table
from dlrm_jax.programs.hlo import program_of
from dlrm_jax.programs.report import operations
from dlrm_jax.targets import lacks, target_mesh

B, IDS, ROWS = 256, 50, 20_000


@pytest.fixture(autouse=True)
def _programs_are_kept_afterwards():
    least: Any = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.skipif(bool(lacks("tpu_v5e")), reason=lacks("tpu_v5e") or "")
@pytest.mark.parametrize(
    ("optimizer", "width"), [(Adam(0.1), 128), (RowWiseAdagrad(0.1), 64), (RowWiseAdagrad(0.1), 80)]
)
def test_no_array_has_a_vector_for_each_id(optimizer: Any, width: int):
    mesh = target_mesh("tpu_v5e", (1, 1))
    tables = [Table("a", ROWS, width)]
    given = [Feature("a", IDS)], [Lookup("a", "a", "a")], mesh, optimizer
    collection = EmbeddingCollection(tables, *given)
    assert set(collection.kernels_in_use.values()) == {"mosaic"}

    def run(state: Any, ids: Any) -> Any:
        pooled, routed = collection.lookup(state, ids)
        cotangents = jax.tree.map(jax.numpy.square, pooled)
        return collection.update(state, routed, cotangents, 0)

    ids = jax.ShapeDtypeStruct((B, IDS), "int32", sharding=NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(run, donate_argnums=0).lower(collection.state_specs(), ids).compile()
    found = operations(program_of(compiled))
    assert found["custom-call tpu_custom_call"] == 2
    assert not {"scatter", "while"} & found.keys()
    assert f"[{B * IDS},{width}]" not in (compiled.as_text() or "")
    memory: Any = compiled.memory_analysis()
    table = 4 * ROWS * width
    assert memory.alias_size_in_bytes >= table
    assert memory.temp_size_in_bytes < table / 8
