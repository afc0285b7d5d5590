"""The native kernels against JAX, which other tests compare with the oracle."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.backend import CPU, Backend
from dlrm_jax.embedding import (
    SGD,
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowOptimizer,
    RowWiseAdagrad,
    Table,
    automatic_plan,
    pooling,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.native import library, ops
from dlrm_jax.native.ops import Kernels, available

TABLES = [
    Table("large", 70_000, 16),
    Table("small", 13, 16),  # fewer rows than a batch has ids
    Table("narrow", 3_001, 3),
    Table("shared", 501, 16),
    Table("adam", 501, 8, optimizer=Adam(0.01)),
]
FEATURES = [Feature("a", 1), Feature("b", 7), Feature("c", 40), Feature("d", 3)]
LOOKUPS = [
    Lookup("large", "c", "large"),
    Lookup("small", "b", "small", "mean"),
    Lookup("narrow", "d", "narrow"),
    Lookup("shared", "a", "shared"),
    Lookup("history", "d", "shared", "none"),
    Lookup("adam", "b", "adam"),
]
BATCH = 256
ROOT = Path(__file__).parents[2]


def collection(kernels: Kernels, optimizer: RowOptimizer, mesh: str, placement: str):
    placed = {table.name: placement for table in TABLES}
    if placement == "fully_sharded":  # each slab that is would take long to compile
        placed |= {"narrow": "row_wise", "adam": "row_wise"}
    plan = automatic_plan(TABLES, make_mesh(mesh).shape["model"], placed)
    return EmbeddingCollection(
        TABLES, FEATURES, LOOKUPS, make_mesh(mesh), optimizer, plan, kernels=kernels
    )


def batch(seed: int, weighted: bool) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(seed)
    below = {"a": 501, "b": 13, "c": 70_000, "d": 501}
    # Squared: some rows come often, most of the large table's once or never.
    columns = [rng.random((BATCH, f.max_ids)) ** 2 * below[f.name] for f in FEATURES]
    ids = np.concatenate(columns, axis=1).astype(np.int32)
    ids[rng.random(ids.shape) < 0.2] = -1
    return ids, rng.uniform(0.1, 1, ids.shape).astype(np.float32) if weighted else None


def weights(table: Table) -> np.ndarray:
    rng = np.random.default_rng(table.rows)
    return rng.uniform(-0.1, 0.1, (table.rows, table.dim)).astype("f4")


def train(tables: EmbeddingCollection, weighted: bool, sums: bool) -> dict[str, np.ndarray]:
    """All arrays after three steps."""

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state, ids, weights, number):
        pooled, context = tables.lookup(state, ids, weights)
        cotangents = jax.tree.map(jnp.sin, pooled)
        gradients = tables.coalesce(tables.send_cotangents(context, cotangents), sums)
        return tables.apply(state, gradients, number)

    state = tables.from_arrays(lambda table: {"table": weights(table)}, 0)
    for number in range(3):
        state = step(state, *batch(number, weighted), np.int32(number))
    return {
        f"{table.name}/{key}": np.array(array)
        for table, arrays in tables.to_arrays(state)
        for key, array in arrays.items()
    }


@pytest.mark.parametrize(
    ("optimizer", "mesh", "placement", "weighted", "sums"),
    [
        pytest.param(SGD, "1x1", "table_wise", True, False, marks=pytest.mark.thorough),
        pytest.param(RowWiseAdagrad, "1x1", "table_wise", True, False, marks=pytest.mark.thorough),
        pytest.param(RowWiseAdagrad, "2x4", "row_wise", False, False, marks=pytest.mark.thorough),
        (RowWiseAdagrad, "2x4", "fully_sharded", True, True),
        pytest.param(SGD, "2x4", "replicated", True, True, marks=pytest.mark.thorough),
    ],
)
def test_updates_are_those_of_jax(optimizer, mesh, placement, weighted, sums):
    rate = optimizer(lambda step: 0.05 / (1 + step))
    native = collection("native", rate, mesh, placement)
    assert native.per_device.native_slabs
    assert native.kernels_in_use["lookups"] == "native"
    assert native.kernels_in_use["updates"].endswith("jax of adam")
    found = train(native, weighted, sums)
    expected = train(collection("jax", rate, mesh, placement), weighted, sums)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dim", "bags", "length"), [(1, 3, 2), (83, 200, 40), (128, 1, 5000)])
def test_bags_are_pooled_as_in_jax(dim: int, bags: int, length: int, weighted: bool):
    rng = np.random.default_rng(dim)
    table = rng.normal(size=(1000, dim)).astype(np.float32)
    rows = rng.integers(0, 1100, (bags, 2, length)).astype(np.int32)  # those from 1000 on are none
    rows[0, 0] = 1000
    weights = rng.uniform(size=rows.shape).astype(np.float32) if weighted else None
    found = jax.jit(ops.pool)(table, rows, weights)
    expected = jax.jit(pooling.pool)(table, rows, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not np.any(np.asarray(found)[0, 0])


def test_predictions_use_them_too():
    frozen = [dataclasses.replace(t, trainable=False, optimizer=None) for t in TABLES]
    tables = EmbeddingCollection(frozen, FEATURES, LOOKUPS, make_mesh("1x1"), kernels="native")
    assert tables.kernels_in_use == {"lookups": "native", "updates": "none"}
    lookup = jax.jit(lambda state, ids: tables.lookup(state, ids)[0])
    text = lookup.lower(tables.state_specs(), batch(0, False)[0]).compile().as_text() or ""
    assert "dlrm_jax_pool" in text


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_results_do_not_depend_on_the_number_of_threads():
    digests = set()
    for threads in (1, 2, 5):
        program = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("computed.py"))],
            env=os.environ | {"NPROC": str(threads), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        digest, counted = program.stdout.split()
        assert int(counted) == threads
        digests.add(digest)
    assert len(digests) == 1


def test_split_columns():
    tables = [dataclasses.replace(t, dim=16, optimizer=None) for t in TABLES]
    plan = automatic_plan(tables, 4, {t.name: "column_wise" for t in tables})
    mesh = make_mesh("2x4")
    args = (tables, FEATURES, LOOKUPS, mesh)
    # A row's mean is taken over all devices: not by the native update of one.
    rowwise = EmbeddingCollection(*args, RowWiseAdagrad(0.1), plan, kernels="native")
    assert not rowwise.per_device.native_slabs
    found, expected = (
        train(EmbeddingCollection(*args, SGD(0.1), plan, kernels=kernels), True, False)
        for kernels in ("native", "jax")
    )
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-6, err_msg=name)


def test_tables_are_updated_in_place():
    """No copy of a table: the call works on the donated buffer."""
    tables = collection("native", RowWiseAdagrad(0.1), "1x1", "table_wise")

    def step(state, ids):
        pooled, context = tables.lookup(state, ids)
        return tables.update(state, context, pooled, 0)

    lowered = jax.jit(step, donate_argnums=0).lower(tables.state_specs(), batch(0, False)[0])
    text = lowered.compile().as_text() or ""
    assert "dlrm_jax_rowwise_adagrad" in text
    size = next(slab.rows for slab in tables.layout.slabs if "large" in slab.tables)
    assert not re.search(rf"= f32\[{size},16\]\S* copy\(", text)


def test_other_choices_are_refused():
    with pytest.raises(UserError, match="kernels: expected auto, native, jax, got 'cuda'"):
        available("cuda", CPU)
    with pytest.raises(UserError, match="the native ones are for CPUs, the mesh is of gpu"):
        available("native", Backend("gpu"))
    assert not available("auto", Backend("gpu"))


def test_what_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "load", lambda: False)
    with pytest.raises(UserError, match=r"not built for this .* run python -m dlrm_jax.native"):
        available("native", CPU)
    monkeypatch.setenv(library.USE, "jax")
    with pytest.raises(UserError, match=r"^kernels: DLRM_JAX_KERNELS=jax forbids the native ones"):
        available("native", CPU)
    monkeypatch.delenv(library.USE)
    assert not available("auto", CPU)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler", r"no C\+\+ compiler named no-such-compiler"),
        ("/", r"no C\+\+ compiler named /"),
        ("false", "failed"),
        ("'unclosed", "CXX: expected the command of .*'unclosed.*: No closing quotation"),
        ("''", "CXX: expected the command of .*: No name"),
    ],
)
def test_compilers_that_fail(
    compiler: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UserError, match=message):
        library.build()
    assert not list((tmp_path / "dlrm_jax" / "native").iterdir())


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (13, 512), (367, 50), (16, 32), (33, 17)])
def test_transposed(shape: tuple[int, int]):
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    np.testing.assert_array_equal(jax.jit(ops.transposed)(x), x.T)
