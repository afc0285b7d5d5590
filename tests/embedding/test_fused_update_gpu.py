"""The kernels for GPUs that update rows, emulated on a CPU, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding import SGD, Adagrad, Adam, RowWiseAdagrad, fused_update_gpu
from dlrm_jax.embedding.fused_update_gpu import update_runs
from dlrm_jax.embedding.row_runs import RowRuns
from dlrm_jax.embedding.storage_dtype import decode, encode

STEP = 3


def expected(optimizer: Any, table, slots, rows, gradients):
    """The rows and slots after an update, in float64."""
    table, slots = table.copy(), {name: slot.copy() for name, slot in slots.items()}
    rate = optimizer.learning_rate
    for row in np.unique(rows[rows < len(table)]):
        g = gradients[rows == row].sum(axis=0)
        if isinstance(optimizer, SGD):
            change = g
        elif isinstance(optimizer, Adam):
            slots["mean"][row] = 0.9 * slots["mean"][row] + 0.1 * g
            slots["variance"][row] = 0.999 * slots["variance"][row] + 0.001 * g**2
            variance = slots["variance"][row] / (1 - 0.999 ** (STEP + 1))
            change = slots["mean"][row] / (1 - 0.9 ** (STEP + 1)) / (np.sqrt(variance) + 1e-8)
        else:
            square = g**2
            slots["accumulator"][row] += (
                square.mean() if isinstance(optimizer, RowWiseAdagrad) else square
            )
            change = g / (np.sqrt(slots["accumulator"][row]) + optimizer.eps)
        table[row] -= rate * change
    return table, slots


def check(optimizer: Any, rows, width: int, weighted: bool = False, dtype: str = "float32"):
    """Compares an update of a table of 30 rows, given the row of each id in ascending order."""
    rng, ids = np.random.default_rng(0), len(rows)
    rows = np.sort(np.asarray(rows, "i4"))
    table = jnp.asarray(rng.normal(size=(30, width)), dtype)
    shapes = {"row": (30,), "element": (30, width)}
    slots = {name: rng.random(shapes[kind], "f4") for name, kind in optimizer.slots.items()}
    bags = rng.integers(0, 7, ids).astype("i4")
    weights = rng.normal(size=ids).astype("f4") if weighted else None
    cotangents = rng.normal(size=(7, width)).astype("f4")
    arrays: Any = jax.tree.map(jnp.asarray, (rows, bags, weights, cotangents))
    given = optimizer, encode(table), jax.tree.map(jnp.asarray, slots), RowRuns(*arrays)
    found = update_runs(*given, jnp.asarray(STEP), table.dtype, interpret=True)
    gradients = cotangents[bags].astype("f8")
    if weights is not None:
        gradients *= weights[:, None]
    wide: Any = jax.tree.map(lambda x: np.asarray(x, "f8"), slots)
    of_table, of_slots = expected(optimizer, np.asarray(table, "f8"), wide, rows, gradients)
    if dtype == "float32":
        np.testing.assert_allclose(found[0], of_table, rtol=1e-5, atol=1e-5)
    else:
        rounded = np.asarray(decode(found[0], table.dtype), "f8")
        np.testing.assert_allclose(rounded, of_table, rtol=2**-8, atol=1e-5)
    for name, slot in of_slots.items():
        np.testing.assert_allclose(found[1][name], slot, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        Adagrad(0.1),
        RowWiseAdagrad(0.1),
        *(pytest.param(x, marks=pytest.mark.thorough) for x in (SGD(0.1), Adam(0.1))),
    ],
)
def test_rows_that_one_or_many_ids_name(optimizer: Any):
    rng = np.random.default_rng(0)
    rows = [*[3] * 70, *[4] * 30, *rng.integers(0, 33, 100)]  # also across programs, and no rows
    check(optimizer, rows, 5, weighted=True)


def test_a_row_of_more_programs_than_are_looked_at_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_update_gpu, "IDS", 4)
    check(SGD(0.01), [0, 1, *[2] * 600, 5, 31], 3)


@pytest.mark.parametrize(
    "rows",
    [
        [30, 31, 2**31 - 1],
        [*range(30)] * 3,
        *(pytest.param(x, marks=pytest.mark.thorough) for x in ([7], [29] * 64)),
    ],
)
def test_ids_of_any_number(rows: list[int]):
    check(RowWiseAdagrad(0.1), rows, 1)


def test_numbers_of_16_bits():
    check(RowWiseAdagrad(0.1), [*[3] * 70, *range(30)], 8, dtype="bfloat16")


def test_a_schedule_and_a_factor_of_the_rate():
    table, rows = jnp.ones((4, 2)), jnp.zeros(1, "int32")
    runs = RowRuns(rows, rows, None, jnp.ones((1, 2)))
    optimizer = SGD(lambda step: 0.1 * step)
    given = optimizer, table, {}, runs, jnp.asarray(2)
    found, _ = update_runs(*given, rate_factor=jnp.float32(0.5), interpret=True)
    np.testing.assert_allclose(found, [[0.9, 0.9], *[[1, 1]] * 3], rtol=1e-6)
