"""Initial values of tables."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlrm_jax.embedding.table import Table

# Rows that one call of an initializer makes; they decide the initial values. One call for a whole
# table would peak at four times its size.
INITIAL_ROWS = 2**14


def initial_values(tables: Sequence[Table], seed: int) -> dict[str, Float[Array, "_ _"]]:
    """Initial values by table name; they depend on the seed, the table's name and the row alone.

    Args:
        tables: tables of one width and dtype.
        seed: seed of all random numbers.
    """
    by_initializer: dict[int, list[Table]] = {}
    for table in tables:  # by identity: a user's initializer may not be hashable
        by_initializer.setdefault(id(table.init), []).append(table)
    found = {}
    for alike in by_initializer.values():
        # In one loop, since compiling a random generator takes longer than running it.
        chunks = [-(-table.rows // INITIAL_ROWS) for table in alike]
        name = np.repeat([zlib.crc32(table.name.encode()) for table in alike], chunks)
        number = np.concatenate([np.arange(count) for count in chunks])
        bound = np.repeat([table.initial_bound for table in alike], chunks)

        def draw(chunk: tuple[Array, Array, Array], table: Table = alike[0]) -> Array:
            name, number, bound = chunk
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), name), number)
            return table.initial_rows(key, INITIAL_ROWS, bound)

        dtype = jnp.promote_types(alike[0].dtype, jnp.float32)
        drawn = jax.lax.map(draw, (name.astype("u4"), number.astype("u4"), bound.astype(dtype)))
        drawn = drawn.reshape(-1, alike[0].dim)
        start = 0
        for table, count in zip(alike, chunks, strict=True):
            found[table.name] = drawn[start : start + table.rows]
            start += count * INITIAL_ROWS
    return found
