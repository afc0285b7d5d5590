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

from dlrm_jax.embedding.row_runs import to_front

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
    width, index = new.shape[1], jnp.arange(len(rows), dtype=jnp.int32)
    if not ascend:
        rows, order = jax.lax.sort((rows, index), num_keys=1)
        new = new[order]
    lines, size = rows // per_line(width), columns(width) // per_line(width)
    line = jnp.tile(jnp.pad(new, ((0, 0), (0, size - width))), per_line(width))
    is_new = jnp.arange(columns(width)) // size == (rows % per_line(width))[:, None]
    step = 1
    while step < min(per_line(width), len(rows)):  # the first row of a line collects the others
        is_same = jnp.zeros(len(rows), bool).at[:-step].set(lines[step:] == lines[:-step])
        is_other = is_same[:, None] & jnp.roll(is_new, -step, axis=0)
        line = jnp.where(is_other, jnp.roll(line, -step, axis=0), line)
        is_new, step = is_new | is_other, 2 * step
    is_first = jnp.ones(len(rows), bool).at[1:].set(lines[1:] != lines[:-1])
    # Lines are numbered anew, so that no two are equal, and all ascend.
    kept = to_front(is_first & (lines < len(array)))
    lines = jnp.where(kept < len(rows), lines[kept], len(array) + index)
    line = jnp.where(is_new[kept], line[kept], array.at[lines].get(mode="fill", fill_value=0))
    return array.at[lines].set(line, mode="drop", unique_indices=True, indices_are_sorted=True)
