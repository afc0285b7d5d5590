"""Base class of optimizers that read and write only the rows that a batch touched.

They are *lazy*: a row that no id of the batch names keeps its values and its state, even where the
dense form of the optimizer would change it, such as by momentum. The gradient of a row is the sum
over all its occurrences in the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlrm_jax.native import ops

SlotKind = Literal["row", "element", "scalar"]
"""One number per row, one per element, or one for all rows, which every update replaces."""

Slots = dict[str, Array]

NativeUnit = Literal["columns", "rows"] | None
"""Part of a table that a native update takes: some columns of rows, or only whole rows."""

Rows = Float[Array, "K d"]
Step = Int[Array, ""]
RowMean = Callable[[Rows], Float[Array, " K"]]

Changes = tuple[Rows, Slots]
"""What to add to K rows, and their new state."""


def mean_of_columns(x: Rows) -> Float[Array, " K"]:
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
    native: ClassVar[NativeUnit] = None

    def __init_subclass__(cls):
        super().__init_subclass__()
        # They describe the update of their own class, not one that overrides it.
        update = _definition(cls, "update", "update_values")
        if _definition(cls, "linear") > update:
            cls.linear = False  # summing first is right for any update
        if _definition(cls, "native") > update:
            cls.native = None

    def update(self, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean) -> Changes:
        """Returns the changes of K rows, and their new state.

        Args:
            gradients: summed gradient of each touched row, [K, d].
            slots: optimizer slots of the same rows by name, [K], [K, d] or [] each.
            step: number of updates done before this one.
            row_mean: function that takes the mean over all columns of a row; d may be some of them.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither update nor update_values")

    def update_values(
        self, values: Rows, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean
    ) -> Changes:
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
        step: Step,
    ) -> tuple[Float[Array, "R d"], Slots]:
        """Applies an update to a float32 table on a CPU by a kernel of `native`.

        Args:
            table: rows of one device, [R, d].
            slots: optimizer slots of these rows by name.
            blocks: rows and gradients of bags; the kernel sums those of equal rows.
            step: number of updates done before this one.
        """
        raise NotImplementedError

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """The state of rows that no update has touched: zeros, unless overridden.

        Args:
            values: rows, [R, d], in at least float32, which is also the dtype of the state.
        """
        shapes = {"row": values.shape[:1], "element": values.shape, "scalar": ()}
        return {name: jnp.zeros(shapes[kind], values.dtype) for name, kind in self.slots.items()}


def _definition(cls: type, *names: str) -> int:
    """The place, among the bases of a class, of the first that defines one of these names."""
    return next(i for i, base in enumerate(cls.__mro__) if vars(base).keys() & set(names))


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
