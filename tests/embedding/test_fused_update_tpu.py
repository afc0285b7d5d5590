"""The kernel for TPUs that updates rows, emulated on a CPU, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from oracle import FORMULAS

from dlrm_jax.embedding import SGD
from dlrm_jax.embedding.fused_update_tpu import update_runs
from dlrm_jax.embedding.optimizer import OPTIMIZERS, row_optimizer
from dlrm_jax.embedding.packed_rows import pack, unpack
from dlrm_jax.embedding.row_runs import RowRuns

R, BAGS, STEP, RATE = 256, 7, 3, 0.1
# Runs over several blocks of ids, lines that go on in the next block, the last rows, and no rows.
RNG = np.random.default_rng(1)
MANY = [*[3] * 200, *[4] * 60, *RNG.integers(0, R + 9, 250), R - 1, R - 1, R - 2]
OFTEN = [((64, True), "rowwise_adagrad"), ((128, False), "adam")]


def check(
    name: str,
    ids: Sequence[int],
    width: int,
    packed: bool,
    weighted: bool,
    interpret: Any = True,
    rtol: float = 1e-9,
) -> None:
    """Compares an update, given the row of each id."""
    optimizer, formula = row_optimizer(name, RATE), FORMULAS[name]
    rng, rows = np.random.default_rng(0), np.sort(np.asarray(ids, "i4"))
    shapes = {"row": (R,), "element": (R, width)}
    table = rng.normal(size=(R, width))
    slots = {name: rng.random(shapes[kind]) for name, kind in optimizer.slots.items()}
    bags, cotangents = rng.integers(0, BAGS, len(rows)), rng.normal(size=(BAGS, width))
    weights = rng.normal(size=len(rows)) if weighted else None
    cotangents[2] = np.nan  # stays in the rows of this bag
    dtype = "float64" if interpret is True else "float32"

    def stored(x: np.ndarray) -> Any:
        own = jnp.asarray(x, dtype)
        return pack(own) if packed and x.ndim == 2 else own

    def read(x: Any) -> np.ndarray:
        return np.asarray(unpack(x, width) if packed and x.ndim == 2 else x)

    with jax.enable_x64(interpret is True):
        runs = RowRuns(
            jnp.asarray(rows),
            jnp.asarray(bags, "int32"),
            None if weights is None else jnp.asarray(weights, dtype),
            jnp.asarray(cotangents, dtype),
        )
        own = {name: stored(x) for name, x in slots.items()}
        found, new = update_runs(
            optimizer, stored(table), own, runs, jnp.asarray(STEP), interpret=interpret
        )
        found, new = read(found), {name: read(x) for name, x in new.items()}
    gradients = cotangents[bags] * (1 if weights is None else weights[:, None])
    for row in np.unique(rows[rows < R]):
        gradient = gradients[rows == row].sum(axis=0)
        formula.update(table, slots, row, gradient, RATE, formula.eps, STEP + 1)
    np.testing.assert_allclose(found, table, rtol=rtol, atol=rtol)
    for name, slot in slots.items():
        np.testing.assert_allclose(new[name], slot, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("width", "packed", "name"),
    [
        pytest.param(*width, name, marks=() if (width, name) in OFTEN else pytest.mark.thorough)
        for width in ((64, True), (128, False), (8, True), (200, True))
        for name in OPTIMIZERS
    ],
)
def test_rows_that_one_or_many_ids_name(name: str, width: int, packed: bool):
    check(name, MANY, width, packed, weighted=width != 128)


@pytest.mark.parametrize(
    "rows",
    [
        [R, R + 1, 2**31 - 1],
        [*range(R)] * 3,
        *(pytest.param(x, marks=pytest.mark.thorough) for x in ([7], [5] * 128)),
    ],
)
def test_ids_of_any_number(rows: list[int]):
    check("rowwise_adagrad", rows, 64, packed=True, weighted=False)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam"])
def test_no_copy_races_with_another(name: str):
    """The emulator of a TPU's memories begins with NaNs, and copies when they are waited for."""
    check(
        name,
        MANY,
        64,
        packed=True,
        weighted=True,
        interpret=pltpu.InterpretParams(detect_races=True),
        rtol=2e-4,
    )
    races: Any = interpret_pallas_call.races
    assert not races.races_found


def test_a_schedule_and_a_factor_of_the_rate():
    table, rows = jnp.ones((128, 128)), jnp.zeros(1, "int32")
    runs = RowRuns(rows, rows, None, jnp.ones((1, 128)))
    given = SGD(lambda step: 0.1 * step), table, {}, runs, jnp.asarray(2)
    found, _ = update_runs(*given, rate_factor=jnp.float32(0.5), interpret=True)
    np.testing.assert_allclose(found, [[0.9] * 128, *[[1] * 128] * 127], rtol=1e-6)
