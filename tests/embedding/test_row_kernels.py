"""Collections whose rows are read and updated by kernels for GPUs, emulated on CPUs."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from dlrm_jax import backend
from dlrm_jax.embedding import EmbeddingCollection, Feature, Lookup, RowWiseAdagrad, Table

FEATURES = Feature("long", 5), Feature("one")


def collection_of(kernels: str, monkeypatch: pytest.MonkeyPatch, mesh: str) -> EmbeddingCollection:
    record = dataclasses.replace(backend.CPU, row_kernels=kernels)
    monkeypatch.setattr(backend, "CPU", record)
    return EmbeddingCollection(
        [Table("a", 30, 6), Table("b", 9, 2), Table("c", 12, 4)],
        FEATURES,
        [Lookup("a", "long", "a"), Lookup("b", "one", "b"), Lookup("c", "long", "c", "mean")],
        mesh,
        RowWiseAdagrad(0.1),
        kernels="jax",
    )


@pytest.mark.parametrize("mesh", ["1x1", "2x2"])
def test_kernels_give_the_same_vectors(mesh: str, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    ids = {"long": rng.integers(-1, 9, (8, 5)), "one": rng.integers(0, 9, 8)}
    weights = {"long": rng.random((8, 5), "f4"), "one": np.ones(8, "f4")}
    results = []
    for kernels in ("xla", "triton"):
        collection = collection_of(kernels, monkeypatch, mesh)
        state = collection.init(0)
        results.append(collection.lookup(state, ids, weights)[0])
    assert collection.kernels_in_use["lookups"] == "triton of a, c; jax of b"
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), *results)
