"""Collections whose rows are read and updated by kernels of Pallas, emulated on CPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from small_collection import TABLES, B, built, collection, random_arrays, random_batch, read

from dlrm_jax import backend
from dlrm_jax.embedding import (
    EmbeddingCollection,
    EmbeddingState,
    RowGradients,
    RowOptimizer,
    RowWiseAdagrad,
    Table,
    fused_update_gpu,
    fused_update_tpu,
)
from dlrm_jax.errors import UserError

# With so many rows, copies exchange cotangents.
LARGE = [dataclasses.replace(x, rows=30 * x.rows) for x in TABLES]


def collection_of(
    kernels: str,
    plan: str,
    monkeypatch: pytest.MonkeyPatch,
    mesh: str = "2x4",
    tables: Sequence[Table] = TABLES,
) -> EmbeddingCollection:
    own: dict[str, Any] = {"packed_from": None}
    if kernels == "mosaic":
        own = {"packed_from": 2, "row_sums": backend.TPU.row_sums}
    record = dataclasses.replace(backend.CPU, row_kernels=kernels, native_kernels=False, **own)
    monkeypatch.setattr(backend, "CPU", record)
    return collection(mesh, plan, tables)


@pytest.fixture
def updated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows of the tables that kernels update."""
    found: list[int] = []
    for module in (fused_update_gpu, fused_update_tpu):
        update_runs = module.update_runs

        def noted(optimizer: Any, table: Any, *given: Any, update_runs: Any = update_runs) -> Any:
            found.append(len(table))
            return update_runs(optimizer, table, *given)

        monkeypatch.setattr(module, "update_runs", noted)
    return found


@pytest.mark.parametrize(
    ("plan", "given", "pallas"),
    [
        ("mixed", LARGE, "triton"),
        pytest.param("fully_sharded", TABLES, "mosaic", marks=pytest.mark.thorough),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                ("mixed", TABLES, "triton"),
                ("mixed", LARGE, "mosaic"),
                ("mixed", TABLES, "mosaic"),
                ("column_wise", TABLES, "triton"),
                ("column_wise", LARGE, "mosaic"),
                ("fully_sharded", TABLES, "triton"),
            )
        ),
    ],
)
def test_kernels_give_the_same_vectors_and_rows(
    plan: str,
    given: Sequence[Table],
    pallas: str,
    updated: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    ids, weights = random_batch()
    results: list[Any] = []
    for kernels in ("xla", pallas):
        tables = collection_of(kernels, plan, monkeypatch, tables=given)

        def run(state: EmbeddingState, tables: EmbeddingCollection = tables):
            pooled, routed = tables.lookup(state, ids, weights)
            cotangents = jax.tree.map(lambda x: x + 1, pooled)
            return pooled, tables.update(state, routed, cotangents, 0)

        pooled, state = jax.jit(run)(built(tables, random_arrays(given)))
        results.append((pooled, read(tables, state)))
        used = tables.kernels_in_use
    one_number = "" if pallas == "mosaic" else "d, "  # which isn't packed
    assert used["lookups"].startswith(f"{pallas} of a, c, {one_number}e, f; jax of b")
    assert used["updates"].startswith(pallas)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *results)
    summed = {name for name, order in orders(tables).items() if order != "any"}
    fused = [tables.per_device.trained_slabs[x] for x in tables.per_device.fused_slabs - summed]
    assert {*updated} == {x.stored_shape((x.rows, x.width))[0] for x in fused}
    assert fused or plan == "column_wise"  # of LARGE tables, copies are fused


def orders(tables: EmbeddingCollection) -> dict[str, str]:
    """What is known of the rows of gradients, by slab."""

    def run(state: EmbeddingState, ids: Any) -> RowGradients:
        pooled, routed = tables.lookup(state, ids)
        return tables.coalesce(tables.send_cotangents(routed, pooled))

    found = jax.eval_shape(run, tables.state_specs(), random_batch()[0])
    return {name: known.order for name, known in found.known.items()}


def test_sums_of_copies_are_not_sorted_once_more(updated, monkeypatch):
    tables = collection_of("triton", "replicated", monkeypatch)
    assert orders(tables) == {"a": "all", "b": "all", "c": "any", "d": "all", "e": "any"}
    run_update(tables)
    assert sorted(updated) == [29, 50]


def test_as_many_ids_as_rows_are_not_one_for_each(updated, monkeypatch):
    """The ids of a batch, some of them equal, which kernels sum."""
    count = B * 6  # of lookups a and a_sequence
    given = [dataclasses.replace(x, rows=count) if x.name == "a" else x for x in TABLES]
    tables = collection_of("triton", "replicated", monkeypatch, "1x1", given)
    found = orders(tables)
    assert found.pop("a") == "any"
    assert {*found.values()} == {"any"}
    run_update(tables)
    assert count in updated


def run_update(tables: EmbeddingCollection) -> None:
    def run(state: EmbeddingState, ids: Any) -> EmbeddingState:
        pooled, routed = tables.lookup(state, ids)
        return tables.update(state, routed, pooled, 0)

    jax.eval_shape(run, tables.state_specs(), random_batch()[0])


def test_a_step_that_clips_sums_rows_before(monkeypatch: pytest.MonkeyPatch):
    tables = collection_of("triton", "mixed", monkeypatch)
    assert tables.per_device.fused_slabs
    assert not tables.per_device.sums(sum_duplicates=False)
    assert tables.per_device.sums(sum_duplicates=True)


def test_an_optimizer_with_an_update_of_its_own_is_not_fusible():
    class Own(RowWiseAdagrad):
        def update(self, gradients: Any, slots: Any, step: Any, row_mean: Any) -> Any:
            return gradients, slots

    assert RowWiseAdagrad.fusible
    assert not Own.fusible


@pytest.mark.parametrize(("slots", "field"), [({"n": "scalar"}, "learning_rate"), ({}, "rate")])
def test_an_optimizer_that_kernels_cannot_have_is_not_fusible(slots: Any, field: str):
    def update(self: Any, gradients: Any, slots: Any, step: Any, row_mean: Any) -> Any:
        return gradients, slots

    content = {"__annotations__": {field: float}, "slots": slots, "fusible": True, "update": update}
    with pytest.raises(UserError, match="optimizer Own: expected a field learning_rate and no sca"):
        type("Own", (RowOptimizer,), content)
