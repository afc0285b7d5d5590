"""Owners of fully sharded rows update them by kernels of Pallas, emulated, against NumPy."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import FORMULAS, new_slots

from dlrm_jax import backend
from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    EmbeddingState,
    Feature,
    Lookup,
    Plan,
    RowWiseAdagrad,
    Table,
    fused_update_gpu,
    fused_update_tpu,
    owner_exchange,
)
from dlrm_jax.embedding.l2 import add_l2
from dlrm_jax.embedding.optimizer import OPTIMIZERS, row_optimizer
from dlrm_jax.embedding.plan import fully_sharded
from dlrm_jax.mesh import make_mesh

B, IDS, ROWS, DIM, STEPS, RATE = 16, 4, 40, 3, 3, 0.1


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of ids of the updates by kernels; those for GPUs have programs of few ids."""
    monkeypatch.setattr(fused_update_gpu, "IDS", 4)
    found: list[int] = []
    for module in (fused_update_gpu, fused_update_tpu):
        update_runs = module.update_runs

        def noted(*given: Any, update_runs: Any = update_runs) -> Any:
            found.append(len(given[3].rows))
            return update_runs(*given)

        monkeypatch.setattr(module, "update_runs", noted)
    return found


def choose(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has emulated devices update rows by these kernels, or by XLA in the way of GPUs."""
    like = backend.TPU if kernels == "mosaic" else backend.GPU
    own: dict[str, Any] = {"row_sums": like.row_sums, "packed_from": like.packed_from and 2}
    record = dataclasses.replace(backend.CPU, row_kernels=kernels, native_kernels=False, **own)
    monkeypatch.setattr(backend, "CPU", record)


def collection(mesh: str, optimizer: Any, dtype: str = "float32") -> EmbeddingCollection:
    """One table that all devices share."""
    plan = Plan(make_mesh(mesh).shape["model"], fully_sharded("t"))
    given = [Feature("f", IDS)], [Lookup("f", "f", "t")], mesh, optimizer, plan
    return EmbeddingCollection([Table("t", ROWS, DIM, dtype=dtype)], *given)


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids, some of them in nearly all samples and some absent, and cotangents of each step."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(STEPS):
        ids = np.minimum(rng.zipf(1.5, (B, IDS)) - 1, ROWS - 1).astype("i4")
        ids[rng.random(ids.shape) < 0.2] = -1
        found.append((ids, rng.normal(size=(B, DIM))))
    return found


def by_hand(name: str, table: np.ndarray) -> dict[str, np.ndarray]:
    """The table and its optimizer state after all steps, by the oracle's formula."""
    table, slots = table.copy(), new_slots(name, table)
    for step, (ids, cotangents) in enumerate(batches(), 1):
        gradient = np.zeros_like(table)
        for own, cotangent in zip(ids, cotangents, strict=True):
            np.add.at(gradient, own[own >= 0], cotangent)
        for row in np.unique(ids[ids >= 0]):
            formula = FORMULAS[name]
            formula.update(table, slots, row, gradient[row], RATE, formula.eps, step)
    return {"table": table} | slots


def trained(tables: EmbeddingCollection, table: np.ndarray) -> dict[str, np.ndarray]:
    """The same of the collection."""

    @jax.jit
    def step(state: EmbeddingState, ids: Any, cotangents: Any, count: Any) -> EmbeddingState:
        _, routed = tables.lookup(state, ids)
        return tables.update(state, routed, {"f": cotangents}, count)

    state = tables.from_arrays(lambda _: {"table": table}, 0)
    for count, (ids, cotangents) in enumerate(batches()):
        state = step(state, tables.put(ids), jnp.asarray(cotangents), np.int32(count))
    ((_, arrays),) = tables.to_arrays(state)
    return {key: np.asarray(x) for key, x in arrays.items()}


CASES = [  # and the rows of a message in the group, and between groups
    ("triton", ("2x4", (2, 1)), "adagrad"),
    ("triton", ("2x2", ()), "adam"),
    ("mosaic", ("2x4", (2, 1)), "rowwise_adagrad"),
    *(
        pytest.param("triton", mesh, name, marks=pytest.mark.thorough)
        for mesh in (("2x2", ()), ("2x4", (2, 1)))
        for name in OPTIMIZERS
        if (mesh[0], name) not in {("2x4", "adagrad"), ("2x2", "adam")}
    ),
    *(
        pytest.param(kernels, mesh, name, marks=pytest.mark.thorough)
        for kernels in ("triton", "mosaic")
        for mesh in (("2x4", ()), ("2x2", (3, 2)), ("1x8", (2,)))
        for name in OPTIMIZERS
    ),
]


@pytest.mark.parametrize(("kernels", "mesh", "name"), CASES)
def test_rows_of_several_partners_in_one_or_many_rounds(
    kernels: str,
    mesh: tuple[str, tuple[int, ...]],
    name: str,
    updates: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    choose(kernels, monkeypatch)
    shape, capacities = mesh
    if capacities:
        left = itertools.cycle(capacities)
        monkeypatch.setattr(owner_exchange, "capacity", lambda *of: next(left))
    table = np.random.default_rng(1).normal(size=(ROWS, DIM))
    with jax.enable_x64(True):
        tables = collection(shape, row_optimizer(name, RATE), "float64")
        assert tables.kernels_in_use["updates"] == kernels
        found = trained(tables, table)
    # The first round, and one in the loop of the others.
    assert len(updates) == 2
    for key, wanted in by_hand(name, table).items():
        np.testing.assert_allclose(found[key], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "whole_tables", [True, *(pytest.param(x, marks=pytest.mark.thorough) for x in (None, False))]
)
def test_a_penalty_needs_sums_and_a_norm_does_not(
    whole_tables: bool | None, updates: list[int], monkeypatch: pytest.MonkeyPatch
):
    ids, cotangents = batches()[0]
    found = []
    for kernels in ("xla", "triton"):
        choose(kernels, monkeypatch)
        tables = collection("2x2", RowWiseAdagrad(RATE))

        @jax.jit
        def step(state: EmbeddingState, ids: Any, tables: EmbeddingCollection = tables):
            _, routed = tables.lookup(state, ids)
            sent = tables.send_cotangents(routed, {"f": jnp.asarray(cotangents, "f4")})
            gradients = tables.coalesce(sent, sum_duplicates=True)
            if whole_tables is not None:
                gradients = add_l2(tables, state, gradients, 0.1, whole_tables)
            factor = 1 / jnp.sqrt(gradients.squared_norm())
            return tables.apply(state, gradients.scaled(factor), 0)

        ((_, arrays),) = tables.to_arrays(step(tables.init(0), tables.put(ids)))
        found.append({key: np.asarray(x) for key, x in arrays.items()})
        assert bool(updates) == (kernels == "triton" and whole_tables is None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *found)


def test_optimizers_of_optax_and_random_rounding_stay_with_xla(monkeypatch: pytest.MonkeyPatch):
    choose("triton", monkeypatch)
    assert collection("2x2", optax.adam(RATE)).kernels_in_use["updates"] == "jax"
    assert collection("2x2", SGD(RATE), "bfloat16").kernels_in_use["updates"] == "jax"
