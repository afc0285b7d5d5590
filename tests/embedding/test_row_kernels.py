"""Collections whose rows are read and updated by kernels for GPUs, emulated on CPUs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from small_collection import built, collection, random_arrays, random_batch, read

from dlrm_jax import backend
from dlrm_jax.embedding import EmbeddingCollection, EmbeddingState, RowWiseAdagrad


def collection_of(kernels: str, plan: str, monkeypatch: pytest.MonkeyPatch) -> EmbeddingCollection:
    record = dataclasses.replace(
        backend.CPU, row_kernels=kernels, native_kernels=False, packed_from=None
    )
    monkeypatch.setattr(backend, "CPU", record)
    return collection("2x4", plan)


@pytest.mark.parametrize("plan", ["mixed", pytest.param("column_wise", marks=pytest.mark.thorough)])
def test_kernels_give_the_same_vectors_and_rows(plan: str, monkeypatch: pytest.MonkeyPatch):
    ids, weights = random_batch()
    results: list[Any] = []
    for kernels in ("xla", "triton"):
        tables = collection_of(kernels, plan, monkeypatch)

        def run(state: EmbeddingState, tables: EmbeddingCollection = tables):
            pooled, routed = tables.lookup(state, ids, weights)
            cotangents = jax.tree.map(lambda x: x + 1, pooled)
            return pooled, tables.update(state, routed, cotangents, 0)

        pooled, state = jax.jit(run)(built(tables, random_arrays()))
        results.append((pooled, read(tables, state)))
        used = tables.kernels_in_use
    assert used["lookups"] == "triton of a, c, d, e, f; jax of b"
    assert used["updates"].startswith("triton")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *results)


def test_a_step_that_clips_sums_rows_before(monkeypatch: pytest.MonkeyPatch):
    tables = collection_of("triton", "mixed", monkeypatch)
    assert tables.per_device.triton_slabs
    assert not tables.per_device.sums(sum_duplicates=False)
    assert tables.per_device.sums(sum_duplicates=True)


def test_an_optimizer_with_an_update_of_its_own_is_not_fusible():
    class Own(RowWiseAdagrad):
        def update(self, gradients: Any, slots: Any, step: Any, row_mean: Any) -> Any:
            return gradients, slots

    assert RowWiseAdagrad.fusible
    assert not Own.fusible
