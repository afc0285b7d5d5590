"""Optimizers that read and write only the rows that a batch touched.

They are *lazy*: a row that no id of the batch names keeps its values and its state, even where the
dense form of the optimizer would change it, such as by momentum. The gradient of a row is the sum
over all its occurrences in the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dlrm_jax.errors import UserError
from dlrm_jax.native import ops

Rate = float | Callable[[Int[Array, ""]], ArrayLike]
"""A learning rate, or a schedule of the number of updates done so far (from 0), as in optax."""

SlotKind = Literal["row", "element", "scalar"]
"""One number per row, one per element, or one for all rows, which every update replaces."""

Slots = dict[str, Array]

RowMean = Callable[[Float[Array, "K d"]], Float[Array, " K"]]


def mean_of_columns(x: Float[Array, "K d"]) -> Float[Array, " K"]:
    """The mean of each row."""
    return jnp.mean(x, axis=1)


class RowOptimizer:
    """Base class of the optimizers of tables.

    A subclass is a frozen dataclass with an `update`, or an `update_values` where the update
    depends on the rows themselves. Tables whose optimizers have equal fields may share one array.

    Attributes:
        slots: optimizer slots by name: one number per ``"row"``, per ``"element"``, or one
            ``"scalar"`` for all rows.
        linear: whether the update is linear in the gradient and has no state. Gradients of one row
            may then be applied one by one, without being summed first.
        native: unit of `native_update`: some ``"columns"`` of rows, or only whole ``"rows"`` on one
            device; None if there is no native update.
    """

    slots: ClassVar[Mapping[str, SlotKind]] = {}
    linear: ClassVar[bool] = False
    native: ClassVar[Literal["columns", "rows"] | None] = None

    def __init_subclass__(cls):
        super().__init_subclass__()
        if {"update", "update_values"} & vars(cls).keys() and "native" not in vars(cls):
            cls.native = None  # an inherited native update wouldn't match
        if {"update", "update_values"} & vars(cls).keys() and "linear" not in vars(cls):
            cls.linear = False  # the inherited value; summing first is right for any update

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """Returns the changes of K rows, and their new state.

        Args:
            gradients: summed gradient of each touched row, [K, d].
            slots: optimizer slots of the same rows by name, [K], [K, d] or [] each.
            step: number of updates done before this one.
            row_mean: function that takes the mean over all columns of a row; d may be some of them.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither update nor update_values")

    def update_values(
        self,
        values: Float[Array, "K d"],
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """Like `update`, for an update that depends on the rows' values, such as weight decay.

        Args:
            values: rows before the update, [K, d], in at least float32.
            gradients: summed gradient of each touched row, [K, d].
            slots: optimizer slots of the same rows by name, [K], [K, d] or [] each.
            step: number of updates done before this one.
            row_mean: function that takes the mean over all columns of a row.
        """
        del values
        return self.update(gradients, slots, step, row_mean)

    def native_update(
        self,
        table: Float[Array, "R d"],
        slots: Slots,
        blocks: Sequence[ops.BlockGradients],
        step: Array,
    ) -> tuple[Float[Array, "R d"], Slots]:
        """Applies an update to a float32 table on a CPU by a kernel of `native`.

        Args:
            table: rows of one device, [R, d].
            slots: optimizer slots of these rows by name.
            blocks: rows and gradients of bags; the kernel sums those of equal rows.
            step: number of updates done before this one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no native update")

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """The state of rows that no update has touched: zeros, unless overridden.

        Args:
            values: rows, [R, d], in at least float32, which is also the dtype of the state.
        """
        shapes = {"row": values.shape[:1], "element": values.shape, "scalar": ()}
        return {name: jnp.zeros(shapes[kind], values.dtype) for name, kind in self.slots.items()}


def rate_at(learning_rate: Rate, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """The learning rate of the update after ``step`` earlier ones."""
    return learning_rate(step) if callable(learning_rate) else learning_rate  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class SGD(RowOptimizer):
    """``w -= rate · g``."""

    learning_rate: Rate
    linear: ClassVar[bool] = True
    native: ClassVar[Literal["columns", "rows"] | None] = "columns"

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean = mean_of_columns,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """See `RowOptimizer.update`."""
        return -rate_at(self.learning_rate, step) * gradients, slots

    def native_update(
        self,
        table: Float[Array, "R d"],
        slots: Slots,
        blocks: Sequence[ops.BlockGradients],
        step: Array,
    ) -> tuple[Float[Array, "R d"], Slots]:
        """See `native.ops.sgd`."""
        return ops.sgd(table, rate_at(self.learning_rate, step), blocks), slots


@dataclasses.dataclass(frozen=True)
class Adagrad(RowOptimizer):
    """``a += g²; w -= rate · g / (√a + eps)`` for each element.

    It is PyTorch's and the DLRM reference's formula, with a from 0. `optax.adagrad` differs: its
    accumulator starts at 0.1 and its eps is inside the root.

    Attributes:
        learning_rate: a number or a schedule.
        eps: small number that keeps the divisor above 0.
        initial_accumulator: value of a before the first update, not negative.
    """

    learning_rate: Rate
    eps: float = 1e-10
    initial_accumulator: float = 0.0
    slots: ClassVar[Mapping[str, SlotKind]] = {"accumulator": "element"}

    def __post_init__(self):
        if self.initial_accumulator < 0:
            raise UserError(
                f"initial_accumulator: expected 0 or more, got {self.initial_accumulator}"
            )

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """See `RowOptimizer.initial_slots`."""
        return {"accumulator": jnp.full_like(values, self.initial_accumulator)}

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
class RowWiseAdagrad(RowOptimizer):
    """``a += mean(g²); w -= rate · g / (√a + eps)`` with one accumulator per row.

    The mean runs over the columns of the row. It is the formula of the DLRM reference
    (``RWSAdagrad``) and FBGEMM (``EXACT_ROWWISE_ADAGRAD``), with a from 0.

    Attributes:
        learning_rate: a number or a schedule.
        eps: small number that keeps the divisor above 0.
        initial_accumulator: value of a before the first update, not negative.
    """

    learning_rate: Rate
    eps: float = 1e-10
    initial_accumulator: float = 0.0
    slots: ClassVar[Mapping[str, SlotKind]] = {"accumulator": "row"}
    native: ClassVar[Literal["columns", "rows"] | None] = "rows"

    def __post_init__(self):
        if self.initial_accumulator < 0:
            raise UserError(
                f"initial_accumulator: expected 0 or more, got {self.initial_accumulator}"
            )

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """See `RowOptimizer.initial_slots`."""
        return {"accumulator": jnp.full_like(values[:, 0], self.initial_accumulator)}

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

    def native_update(
        self,
        table: Float[Array, "R d"],
        slots: Slots,
        blocks: Sequence[ops.BlockGradients],
        step: Array,
    ) -> tuple[Float[Array, "R d"], Slots]:
        """See `native.ops.rowwise_adagrad`."""
        rate = rate_at(self.learning_rate, step)
        table, accumulator = ops.rowwise_adagrad(
            table, slots["accumulator"], rate, self.eps, blocks
        )
        return table, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class Adam(RowOptimizer):
    """Adam (arXiv 1412.6980) on the touched rows.

    The moments of a row decay only in the steps that touch it; the bias correction counts all
    steps, as in TensorFlow's LazyAdam and FBGEMM's Adam.
    """

    learning_rate: Rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    slots: ClassVar[Mapping[str, SlotKind]] = {"mean": "element", "variance": "element"}

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
        name: key of `OPTIMIZERS`.
        learning_rate: a number or a schedule.
        eps: eps of the optimizer; None for its default; SGD has none.

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


def slot_shapes(
    optimizer: RowOptimizer, rows: int, dim: int, dtype: jnp.dtype
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the slots of ``rows`` rows; they are float32 for tables of 16 bits."""
    values = jax.ShapeDtypeStruct((rows, dim), jnp.promote_types(dtype, jnp.float32))
    return jax.eval_shape(optimizer.initial_slots, values)


def slot_bytes(optimizer: RowOptimizer, dim: int, dtype: jnp.dtype) -> dict[str, int]:
    """Bytes per row of each slot; 0 for a scalar, which belongs to no row."""
    shapes = slot_shapes(optimizer, 1, dim, dtype)
    return {name: x.size * x.dtype.itemsize if x.ndim else 0 for name, x in shapes.items()}
