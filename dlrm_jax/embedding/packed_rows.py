"""Rows that lie side by side in the lanes of a TPU's memory.

The memory of a TPU has lines of 128 numbers. XLA stores an array whose rows don't fill lines column
by column. To read some rows of more than 48 numbers, it first copies the whole table to lines, in
every step. So a slab of such rows is *packed*: row r lies in line r // k, from lane
(r mod k) · 128 / k on, or in lines of its own. Lines are read and written as wholes, in place. A
row is cut out of its line, and the new rows of a line are merged before it is written.

What is said here of XLA was read of programs that libtpu 0.0.41 compiled for a TPU v5e. Shapes: R
rows of d numbers, K row numbers; a *packed* array is [R / k, lines of a row · 128].
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

LANES = 128
"""Numbers of a line."""


def fills_no_lines(width: int, least: int | None) -> bool:
    """Whether rows of so many numbers, but at least ``least``, don't fill lines; False at None."""
    return least is not None and width >= least and width % LANES != 0


def per_line(width: int) -> int:
    """The number k of rows in a line, a power of two; 1 if a row needs a line or more."""
    return max(1, LANES >> (width - 1).bit_length())


def columns(width: int) -> int:
    """The columns of a packed array: whole lines."""
    return -(-width // LANES) * LANES


def pack(x: Shaped[Array, "R d"]) -> Shaped[Array, "lines columns"]:
    """Rows side by side; k divides their number."""
    count, width = x.shape
    k = per_line(width)
    return jnp.pad(x, ((0, 0), (0, columns(width) // k - width))).reshape(count // k, -1)


def unpack(packed: Any, width: int) -> Any:
    """The rows [R, d] of a packed array [lines, columns], of JAX or NumPy, of so many numbers."""
    k = per_line(width)
    return packed.reshape(len(packed) * k, -1)[:, :width]


def take(
    array: Shaped[Array, "_ *d"],
    rows: Int[Array, "*K"],
    width: int,
    past_the_end: Literal["fill", "clip"] = "fill",
) -> Shaped[Array, "..."]:
    """Some rows of an array.

    Args:
        array: rows of a device, packed or not, or a number for each of them.
        rows: row numbers, not negative.
        width: numbers of a row.
        past_the_end: zeros for numbers past the array's end, or any row, which saves a pass over
            what is read.
    """
    if array.ndim == 1 or array.shape[1] == width:
        return _get(array, rows, past_the_end)
    place, half = rows % per_line(width), per_line(width) // 2
    found = _get(array, rows // per_line(width), past_the_end)
    while half:  # the half of what is left that the row lies in
        size = found.shape[-1] // 2
        is_upper = (place & half != 0)[..., None]
        found, half = jnp.where(is_upper, found[..., size:], found[..., :size]), half // 2
    return found[..., :width]


def _get(array: Array, places: Int[Array, "*K"], mode: Literal["fill", "clip"]) -> Array:
    return array.at[places].get(mode=mode, fill_value=0 if mode == "fill" else None)


def put(
    array: Shaped[Array, "_ _"],
    rows: Int[Array, " K"],
    new: Shaped[Array, "K d"],
    ascend: bool = False,
) -> Shaped[Array, "_ _"]:
    """A packed array with rows set to new ones.

    Args:
        array: packed rows of a device.
        rows: different row numbers; those past the array's end are written nowhere.
        new: rows to write.
        ascend: whether the numbers are known to ascend; otherwise they are sorted.
    """
    width, count = new.shape[1], len(rows)
    k, size = per_line(width), columns(width) // per_line(width)
    index = jnp.arange(count, dtype=jnp.int32)
    if not ascend:
        rows, order = jax.lax.sort((rows, index), num_keys=1)
        new = new[order]
    lines = rows // k
    is_first = jnp.ones(count, bool).at[1:].set(lines[1:] != lines[:-1])
    # Lines that are written are numbered anew; rows past the end get numbers of their own.
    number = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    number = jnp.where(lines < len(array), number, count + index)
    known: Any = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    found = jnp.full((count, k), count, jnp.int32).at[number, rows % k].set(index, **known)
    first = jnp.min(found, axis=1)  # of each line; there is none if it is ``count``
    lines = jnp.where(first < count, lines.at[first].get(mode="clip"), len(array) + index)
    line = array.at[lines].get(mode="clip")
    place = jnp.arange(columns(width)) // size
    wide = jnp.pad(new, ((0, 0), (0, columns(width) - width)))
    for i in range(k):
        own = jnp.roll(wide.at[found[:, i]].get(mode="clip"), i * size, axis=1)
        line = jnp.where((found[:, i] < count)[:, None] & (place == i), own, line)
    return array.at[lines].set(line, **known)
