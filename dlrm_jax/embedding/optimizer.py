"""Optimizers that read and write only the rows that a batch touched.

Each is *lazy*: a row that no id of the batch names keeps its values and its
state, also where the dense form of the optimizer would move it (momentum that
decays, for instance). The gradient of a row is the sum over all its occurrences
in the whole batch.
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
"""One number a row, one an element, or one for all rows, which every update replaces."""

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
        slots: the state, by name: one number per ``"row"``, per ``"element"``, or one
            ``"scalar"`` for all rows.
        linear: the update is linear in the gradient and there is no state, so that the
            occurrences of a row may be applied one by one, without being summed first.
        native: what `native_update` works on: ``"columns"`` of rows, or only ``"rows"`` whose
            columns lie on one device; None if there is no native update.
    """

    slots: ClassVar[Mapping[str, SlotKind]] = {}
    linear: ClassVar[bool] = False
    native: ClassVar[Literal["columns", "rows"] | None] = None

    def __init_subclass__(cls):
        super().__init_subclass__()
        if {"update", "update_values"} & vars(cls).keys() and "native" not in vars(cls):
            cls.native = None  # an inherited native update would do something else
        if {"update", "update_values"} & vars(cls).keys() and "linear" not in vars(cls):
            cls.linear = False  # of the inherited update; summing first is right for any

    def update(
        self,
        gradients: Float[Array, "K d"],
        slots: Slots,
        step: Int[Array, ""],
        row_mean: RowMean,
    ) -> tuple[Float[Array, "K d"], Slots]:
        """Returns what to add to K rows, and their new state.

        Args:
            gradients: the summed gradient of each touched row.
            slots: the state of the same rows, [K], [K, d] or [] each.
            step: the number of updates done before this one.
            row_mean: the mean over all columns of a row, of which d may be a part.
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
        """`update` of rows whose values count as well, as they do for weight decay.

        Args:
            values: the rows before the update, in at least float32.
            gradients: as for `update`.
            slots: as for `update`.
            step: as for `update`.
            row_mean: as for `update`.
        """
        del values
        return self.update(gradients, slots, step, row_mean)

    def native_update(
        self, table: Float[Array, "R d"], slots: Slots, bags: Sequence[ops.Bags], step: Array
    ) -> tuple[Float[Array, "R d"], Slots]:
        """`update` by a kernel of `native`, of a float32 table on a CPU.

        Args:
            table: rows of one device.
            slots: their state.
            bags: rows and gradients, which the kernel sums.
            step: as for `update`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no native update")

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """The state of rows that no update has touched: zeros, unless overridden.

        Args:
            values: the rows, in at least float32, whose dtype the state has.
        """
        shapes = {"row": values.shape[:1], "element": values.shape, "scalar": ()}
        return {name: jnp.zeros(shapes[kind], values.dtype) for name, kind in self.slots.items()}


def rate_at(learning_rate: Rate, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """The learning rate of the update that follows ``step`` earlier ones."""
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
        self, table: Float[Array, "R d"], slots: Slots, bags: Sequence[ops.Bags], step: Array
    ) -> tuple[Float[Array, "R d"], Slots]:
        """See `native.ops.sgd`."""
        return ops.sgd(table, rate_at(self.learning_rate, step), bags), slots


@dataclasses.dataclass(frozen=True)
class Adagrad(RowOptimizer):
    """``a += g²; w -= rate · g / (√a + eps)`` for each element.

    As PyTorch and the DLRM reference define it, with a from 0. `optax.adagrad` differs: its
    accumulator starts at 0.1 and its eps stands inside the root.

    Attributes:
        learning_rate: a number or a schedule.
        eps: of the formula.
        initial_accumulator: a before the first update, not negative.
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
    """``a += mean(g²); w -= rate · g / (√a + eps)`` with one accumulator a row.

    The mean runs over the columns of the row. As in the DLRM reference
    (``RWSAdagrad``) and FBGEMM (``EXACT_ROWWISE_ADAGRAD``), with a from 0.

    Attributes:
        learning_rate: a number or a schedule.
        eps: of the formula.
        initial_accumulator: a before the first update, not negative.
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
        self, table: Float[Array, "R d"], slots: Slots, bags: Sequence[ops.Bags], step: Array
    ) -> tuple[Float[Array, "R d"], Slots]:
        """See `native.ops.rowwise_adagrad`."""
        rate = rate_at(self.learning_rate, step)
        table, accumulator = ops.rowwise_adagrad(table, slots["accumulator"], rate, self.eps, bags)
        return table, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class Adam(RowOptimizer):
    """Adam (arXiv 1412.6980) on the touched rows.

    Lazy: the moments of a row decay only in the steps that touch it, while the bias
    correction counts all steps, as in TensorFlow's LazyAdam and FBGEMM's Adam.
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


def slot_shapes(
    optimizer: RowOptimizer, rows: int, dim: int, dtype: jnp.dtype
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the state of ``rows`` rows. Tables of 16 bits keep theirs in float32."""
    values = jax.ShapeDtypeStruct((rows, dim), jnp.promote_types(dtype, jnp.float32))
    return jax.eval_shape(optimizer.initial_slots, values)


def slot_bytes(optimizer: RowOptimizer, dim: int, dtype: jnp.dtype) -> dict[str, int]:
    """Bytes of each slot of one row; 0 of a scalar, which belongs to no row."""
    shapes = slot_shapes(optimizer, 1, dim, dtype)
    return {name: x.size * x.dtype.itemsize if x.ndim else 0 for name, x in shapes.items()}
