"""The update of the touched rows of a table on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Float32, Int, Shaped

from dlrm_jax.embedding.packed_rows import pack, put, take, unpack
from dlrm_jax.embedding.row_optimizer import (
    RowMean,
    RowOptimizer,
    Slots,
    checked_update,
    mean_of_columns,
)
from dlrm_jax.embedding.storage_dtype import decode, encode
from dlrm_jax.errors import UserError

RowOrder = Literal["any", "distinct", "ascending", "all"]
"""What is known of row numbers, those of "no row" included: that no two are equal, that they ascend
too, or that there is one for each row of the table, at its place."""


def checked_step(step: ArrayLike) -> Int[Array, ""]:
    """The number of updates done before this one, an array.

    Raises:
        UserError: it isn't one integer, or it is a negative one of the host's.
    """
    dtype = step.dtype if isinstance(step, jax.Array) else np.asarray(step).dtype
    if np.shape(step) or dtype.kind not in "iu":
        raise UserError(
            f"step: expected the number of updates before this one, an integer, got {dtype} of "
            f"shape {list(np.shape(step))}"
        )
    if not isinstance(step, jax.Array) and np.asarray(step) < 0:
        raise UserError(f"step: expected the number of updates before this one, got {step}")
    return jnp.asarray(step)


def update_rows(
    optimizer: RowOptimizer,
    table: Shaped[Array, "_ _"],
    slots: Slots,
    rows: Int[Array, " K"],
    gradients: Float[Array, "K d"],
    step: Int[Array, ""],
    row_mean: RowMean = mean_of_columns,
    dtype: np.dtype | None = None,
    rounded: Callable[[Float32[Array, "K d"]], Float[Array, "K d"]] | None = None,
    rate_factor: Float[Array, ""] | None = None,
    order: RowOrder = "any",
) -> tuple[Shaped[Array, "_ _"], Slots]:
    """Applies one update to the named rows, in place where the arrays are donated.

    Args:
        optimizer: optimizer of all R rows.
        table: rows of one device, [R, d], in their storage dtype; or packed, see `packed_rows`.
        slots: optimizer slots of these rows, [R], [] or as the table each.
        rows: touched rows, [K]; a number of R or more stands for "no row".
        gradients: gradients of the touched rows, [K, d].
        step: number of updates done before this one.
        row_mean: function that takes the mean over all columns of a row.
        dtype: dtype of the table; None if it is the storage dtype.
        rounded: function that rounds new values to 16 bits; None rounds to the nearest.
        rate_factor: factor of the changes; None for 1.
        order: knowledge of ``rows``. Two may be equal if ``optimizer.linear``, the table's numbers
            have more than 16 bits, and it isn't packed.
    """
    width = gradients.shape[1]
    packed = table.shape[1] != width
    assert not packed or order != "any"
    read, write = _places(rows, order, width if packed else None)
    dtype = dtype or table.dtype
    stored = read(table)
    values = decode(stored, dtype).astype(jnp.promote_types(dtype, jnp.float32))
    scalars = {name for name, kind in optimizer.slots.items() if kind == "scalar"}
    touched = {name: slot if name in scalars else read(slot) for name, slot in slots.items()}
    updates, touched = checked_update(optimizer, values, gradients, touched, step, row_mean)
    if rate_factor is not None:
        updates *= rate_factor
    slots = {
        name: touched[name] if name in scalars else write(slot, touched[name])
        for name, slot in slots.items()
    }
    if dtype.itemsize == 2:
        # A learning rate of 64 bits makes updates of 64 bits.
        new = values + updates.astype(jnp.float32)
        new = rounded(new) if rounded else new.astype(dtype)
        new = new if table.dtype == dtype else encode(new)
        return write(table, new), slots
    updates = updates.astype(dtype)
    if packed or order == "all":
        return write(table, stored + updates), slots
    # Adding, not setting: one pass over the rows, and right for repeated rows too.
    return table.at[rows].add(updates, **known(order)), slots


def _places(
    rows: Int[Array, " K"], order: RowOrder, width: int | None
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """Functions that read rows of an array, and that write new ones to it.

    Args:
        rows: row numbers.
        order: knowledge of them.
        width: numbers of a packed row; None if they aren't packed.
    """
    if order == "all":  # nothing is looked up

        def all_rows(x: Array) -> Array:
            return unpack(x, width) if width and x.ndim == 2 else x

        def chosen(x: Array, new: Array) -> Array:
            touched = (rows < len(rows)).reshape(-1, *(1,) * (x.ndim - 1))
            found = jnp.where(touched, new, all_rows(x))
            return pack(found) if width and x.ndim == 2 else found

        return all_rows, chosen
    if width:

        def put_rows(x: Array, new: Array) -> Array:
            if x.ndim == 2:
                return put(x, rows, new, ascend=order == "ascending")
            return x.at[rows].set(new, **known(order))

        return lambda x: take(x, rows, width, "clip"), put_rows  # "no row" isn't written
    # Row numbers are never negative, so "fill" and "drop" catch every "no row".
    return (
        lambda x: x.at[rows].get(mode="fill", fill_value=0),
        lambda x, new: x.at[rows].set(new, **known(order)),
    )


def known(order: RowOrder) -> Any:
    """What a scatter may know of its places."""
    ascend = order == "ascending"
    differ = ascend or order == "distinct"
    return {"mode": "drop", "unique_indices": differ, "indices_are_sorted": ascend}
