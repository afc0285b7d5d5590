"""Optimizers that read and write only the rows that a batch touched.

Each is *lazy*: a row that no id of the batch names keeps its values and its
state, also where the dense form of the optimizer would move it (momentum that
decays, for instance). The gradient of a row is the sum over all its occurrences
in the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Shaped

from dlrm_jax.embedding.storage_dtype import decode, encode
from dlrm_jax.errors import UserError

Rate = float | Callable[[Int[Array, ""]], Float[Array, ""]]
"""A learning rate, or a schedule of the number of updates done so far (from 0), as in optax."""

SlotShape = Literal["row", "element"]
Slots = dict[str, Array]


RowMean = Callable[[Float[Array, "K d"]], Float[Array, " K"]]


def mean_of_columns(x: Float[Array, "K d"]) -> Float[Array, " K"]:
    """The mean of each row."""
    return jnp.mean(x, axis=1)


@runtime_checkable
class RowOptimizer(Protocol):
    """What a table needs from its optimizer.

    Implementations are frozen dataclasses: tables whose optimizers are equal may
    share one array.

    Attributes:
        slots: the state, all zeros at first: one float per ``"row"`` or per ``"element"``.
        linear: the update is linear in the gradient and there is no state, so that the
            occurrences of a row may be applied one by one, without being summed first.
    """

    slots: ClassVar[Mapping[str, SlotShape]]
    linear: ClassVar[bool]

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean = mean_of_columns,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """Returns what to add to K rows, and their new state.

        Args:
            gradients: the summed gradient of each touched row.
            slots: the state of the same rows, [K] or [K, d] each.
            step: the number of updates done before this one.
            row_mean: the mean over all columns of a row, of which d may be a part.
        """
        ...


def rate_at(learning_rate: Rate, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """The learning rate of the update that follows ``step`` earlier ones."""
    return learning_rate(step) if callable(learning_rate) else learning_rate


@dataclasses.dataclass(frozen=True)
class SGD:
    """``w -= rate · g``."""

    learning_rate: Rate
    slots: ClassVar[Mapping[str, SlotShape]] = {}
    linear: ClassVar[bool] = True

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean = mean_of_columns,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """See `RowOptimizer.update`."""
        return -rate_at(self.learning_rate, step) * gradients, slots


@dataclasses.dataclass(frozen=True)
class Adagrad:
    """``a += g²; w -= rate · g / (√a + eps)`` for each element, a from 0.

    As PyTorch and the DLRM reference define it. `optax.adagrad` differs: its
    accumulator starts at 0.1 and its eps stands inside the root.
    """

    learning_rate: Rate
    eps: float = 1e-10
    slots: ClassVar[Mapping[str, SlotShape]] = {"accumulator": "element"}
    linear: ClassVar[bool] = False

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean = mean_of_columns,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """See `RowOptimizer.update`."""
        accumulator = slots["accumulator"] + gradients**2
        rate = rate_at(self.learning_rate, step)
        return -rate * gradients / (jnp.sqrt(accumulator) + self.eps), {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class RowWiseAdagrad:
    """``a += mean(g²); w -= rate · g / (√a + eps)`` with one accumulator a row, from 0.

    The mean runs over the columns of the row. As in the DLRM reference
    (``RWSAdagrad``) and FBGEMM (``EXACT_ROWWISE_ADAGRAD``).
    """

    learning_rate: Rate
    eps: float = 1e-10
    slots: ClassVar[Mapping[str, SlotShape]] = {"accumulator": "row"}
    linear: ClassVar[bool] = False

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean = mean_of_columns,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """See `RowOptimizer.update`."""
        accumulator = slots["accumulator"] + row_mean(gradients**2)
        scale = rate_at(self.learning_rate, step) / (jnp.sqrt(accumulator) + self.eps)
        return -scale[:, None] * gradients, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980) on the touched rows.

    Lazy: the moments of a row decay only in the steps that touch it, while the bias
    correction counts all steps, as in TensorFlow's LazyAdam and FBGEMM's Adam.
    """

    learning_rate: Rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    slots: ClassVar[Mapping[str, SlotShape]] = {"mean": "element", "variance": "element"}
    linear: ClassVar[bool] = False

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean = mean_of_columns,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """See `RowOptimizer.update`."""
        count = (step + 1).astype(gradients.dtype)
        mean = self.b1 * slots["mean"] + (1 - self.b1) * gradients
        variance = self.b2 * slots["variance"] + (1 - self.b2) * gradients**2
        corrected_mean = mean / (1 - self.b1**count)
        corrected_variance = variance / (1 - self.b2**count)
        rate = rate_at(self.learning_rate, step)
        updates = -rate * corrected_mean / (jnp.sqrt(corrected_variance) + self.eps)
        return updates, {"mean": mean, "variance": variance}


OPTIMIZERS: dict[str, type[SGD | Adagrad | RowWiseAdagrad | Adam]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": Adam,
}


def row_optimizer(name: str, learning_rate: Rate, eps: float | None = None) -> RowOptimizer:
    """The optimizer of this name.

    Args:
        name: one of `OPTIMIZERS`.
        learning_rate: a number or a schedule.
        eps: None for the default of the optimizer; SGD has none.

    Raises:
        UserError: the name is unknown, or SGD is given an eps.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if eps is None:
        return OPTIMIZERS[name](learning_rate)
    if name == "sgd":
        raise UserError(f"eps: sgd has none, got {eps}; leave it out")
    return OPTIMIZERS[name](learning_rate, eps=eps)  # pyright: ignore[reportCallIssue]


def update_rows(
    optimizer: RowOptimizer,
    table: Shaped[Array, "R d"],
    slots: Slots,
    rows: Int[Array, " K"],
    gradients: Float[Array, "K d"],
    step: Int[Array, ""],
    row_mean: RowMean = mean_of_columns,
    dtype: np.dtype | None = None,
    rounded: Callable[[Float32[Array, "K d"]], Float[Array, "K d"]] | None = None,
) -> tuple[Shaped[Array, "R d"], Slots]:
    """Applies one update to the named rows, in place where the arrays are donated.

    Args:
        optimizer: the optimizer of all R rows.
        table: rows of one device, in their storage dtype.
        slots: their optimizer state.
        rows: the touched rows; a number of R or more stands for "no row". Without
            repetition unless ``optimizer.linear`` and the table's numbers have more than 16 bits.
        gradients: their gradients.
        step: the number of updates done before this one.
        row_mean: as for `RowOptimizer.update`.
        dtype: dtype of the table; None if it is stored in it.
        rounded: makes new numbers of 16 bits; None rounds them to the nearest.
    """
    # All numbers are known to be non-negative: "fill" and "drop" then catch every "no row".
    touched = {name: slot.at[rows].get(mode="fill", fill_value=0) for name, slot in slots.items()}
    updates, touched = optimizer.update(gradients, touched, step, row_mean)
    slots = {
        name: slot.at[rows].set(touched[name].astype(slot.dtype), mode="drop")
        for name, slot in slots.items()
    }
    dtype = dtype or table.dtype
    if dtype.itemsize == 2:
        old = decode(table.at[rows].get(mode="fill", fill_value=0), dtype)
        # A rate of 64 bits makes updates of 64 bits.
        new = old.astype(jnp.float32) + updates.astype(jnp.float32)
        new = rounded(new) if rounded else new.astype(dtype)
        new = new if table.dtype == dtype else encode(new)
        return table.at[rows].set(new, mode="drop"), slots
    # Adding, not setting: one pass over the rows, and right for repeated rows too.
    return table.at[rows].add(updates.astype(dtype), mode="drop"), slots


def zero_slots(optimizer: RowOptimizer, rows: int, dim: int, dtype: jnp.dtype) -> Slots:
    """The state of ``rows`` untouched rows. Bfloat16 tables keep theirs in float32."""
    dtype = jnp.promote_types(dtype, jnp.float32)
    shapes = {"row": (rows,), "element": (rows, dim)}
    return {name: jnp.zeros(shapes[kind], dtype) for name, kind in optimizer.slots.items()}


def slot_shapes(
    optimizer: RowOptimizer, rows: int, dim: int, dtype: jnp.dtype
) -> dict[str, jax.ShapeDtypeStruct]:
    """`zero_slots` as shapes, without allocating."""
    return jax.eval_shape(lambda: zero_slots(optimizer, rows, dim, dtype))
