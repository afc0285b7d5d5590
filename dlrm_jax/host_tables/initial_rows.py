"""Initial values of tables that no device has room for, made a part at a time."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt32

from dlrm_jax.embedding.initial_values import INITIAL_ROWS, initial_chunk
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Table

_CHUNKS = 16
"""Chunks of `INITIAL_ROWS` rows that a device makes at a time."""


def initial_arrays(
    table: Table,
    optimizer: RowOptimizer | None,
    specs: Mapping[str, Any],
    given: Mapping[str, np.ndarray],
    seed: int,
) -> dict[str, np.ndarray]:
    """The arrays of a table by row that aren't given, as `from_arrays` makes them on devices.

    Args:
        table: whole table.
        optimizer: its optimizer; None if it is frozen.
        specs: shapes and dtypes of all its arrays, by ``"table"`` or slot.
        given: arrays that there are.
        seed: seed of the initial values.
    """
    missing = [key for key, x in specs.items() if x.ndim and key not in given]
    found = {key: np.empty(specs[key].shape, specs[key].dtype) for key in missing}
    if not found:
        return found

    @jax.jit
    def make(numbers: UInt32[Array, " n"]) -> Array:
        def draw(number: Array) -> Array:
            name = np.uint32(zlib.crc32(table.name.encode()))
            return initial_chunk(table, jax.random.key(seed), name, number, table.initial_bound)

        return jax.lax.map(draw, numbers).reshape(-1, table.dim)

    @jax.jit
    def slots_of(values: Array) -> dict[str, Array]:
        return dict(optimizer.initial_slots(values)) if optimizer else {}

    for start in range(0, table.rows, _CHUNKS * INITIAL_ROWS):
        rows = slice(start, min(start + _CHUNKS * INITIAL_ROWS, table.rows))
        first = start // INITIAL_ROWS
        if "table" in given:
            values = given["table"][rows]
        else:
            numbers = np.arange(first, first + _CHUNKS, dtype=np.uint32)
            values = np.asarray(make(numbers))[: rows.stop - rows.start]
            found["table"][rows] = values
        if missing != ["table"]:
            vectors = values.astype(np.promote_types(values.dtype, np.float32))
            slots = slots_of(vectors)
            for key in missing:
                if key != "table":
                    found[key][rows] = slots[key]
    return found
