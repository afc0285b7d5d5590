"""The rule by which the rows of a table are dealt out over m shards: shard k stores r ≡ k (mod m).

If ids are ordered by frequency, all shards then read about equally many different rows, which they
would not if each had a run of rows. A whole table is the case m = 1.

The rows of a fully sharded slab are dealt out over all devices, one table after the other: row r of
a table that begins at row s of the slab lies on device (s + r) mod m, where it is local row
(s + r) // m. Only quotient and remainder of s are used: s + r may be past int32.

``modulus`` is m and ``residue`` is k, numbers or arrays. A row of the table has a *local row*: its
number among the rows that its shard stores. Arrays are NumPy's or JAX's.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def is_stored(row: Any, modulus: Any, residue: Any) -> Any:
    """Whether the shard stores a row of the table."""
    return row % modulus == residue


def local_row(row: Any, modulus: Any) -> Any:
    """The local row of a row of the table, on the shard that stores it."""
    return row // modulus


def table_row(local: Any, modulus: Any, residue: Any) -> Any:
    """The row of the table that a local row of the shard is."""
    return local * modulus + residue


def count(rows: int, modulus: int, residue: int) -> int:
    """The number of rows that the shard stores of a table of so many rows."""
    return (rows - residue + modulus - 1) // modulus


def place(row: Any, modulus: Any, quotient: Any, remainder: Any) -> tuple[Any, Any]:
    """The device and the local row of a row of a fully sharded table.

    Args:
        row: row of the table.
        modulus: number m of devices.
        quotient: s // m of the table's first row s in the slab.
        remainder: s % m.
    """
    position = row % modulus + remainder
    return position % modulus, quotient + row // modulus + position // modulus


def stored_rows(
    table: Shaped[Array, "rows *d"], modulus: int, residue: int
) -> Shaped[Array, "_ *d"]:
    """The rows that the shard stores, in the order of their local rows."""
    return table[residue::modulus]


def in_table_order(shards: Shaped[Array, "m n *d"]) -> Shaped[Array, "m*n *d"]:
    """The same n consecutive local rows of all m shards, in the order of the table.

    They are consecutive in the table: from m · i on if the first local row is i.
    """
    return jnp.swapaxes(shards, 0, 1).reshape(-1, *shards.shape[2:])
