"""Base class of optimizers that read and write only the rows that a batch touched.

They are *lazy*: a row that no id of the batch names keeps its values and its state, even where the
dense form of the optimizer would change it, such as by momentum. The gradient of a row is the sum
over all its occurrences in the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlrm_jax.errors import UserError
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
    depends on the rows themselves. The change of a row depends on that row and the step, see
    `probe`. Tables whose optimizers have equal fields may share one array.

    Attributes:
        slots: optimizer slots by name: one number per ``"row"``, per ``"element"``, or one
            ``"scalar"`` for all rows, which may depend on its value before and the step.
        linear: whether the update is linear in the gradient and has no state. Gradients of one row
            may then be applied one by one, without being summed first.
        native: unit of `native_update`: some ``"columns"`` of rows, or only whole ``"rows"`` on one
            device; None if there is no native update.
        fusible: whether kernels of Pallas may trace the update, at a learning rate of their own:
            there are a ``learning_rate``, which is a function of the step then, and no scalars, and
            it does only what Pallas can.
    """

    slots: ClassVar[Mapping[str, SlotKind]] = {}
    linear: ClassVar[bool] = False
    native: ClassVar[NativeUnit] = None
    fusible: ClassVar[bool] = False

    def __init_subclass__(cls):
        super().__init_subclass__()
        ignored, values = _definition(cls, "update"), _definition(cls, "update_values")
        if ignored < values and cls.update_values is not RowOptimizer.update_values:
            raise UserError(
                f"optimizer {cls.__name__}: its update would never be called, since "
                f"{cls.__mro__[values].__name__} has an update_values; write update_values"
            )
        if cls.fusible and not cls._may_be_fused():
            raise UserError(
                f"optimizer {cls.__name__}: expected a field learning_rate and no scalar slots of "
                f"one that is fusible; leave fusible out"
            )
        # They describe the update of their own class, not one that overrides it.
        update = min(ignored, values)
        if _definition(cls, "linear") > update:
            cls.linear = False  # summing first is right for any update
        if _definition(cls, "native") > update:
            cls.native = None
        if _definition(cls, "fusible") > update:
            cls.fusible = False

    @classmethod
    def _may_be_fused(cls) -> bool:
        fields = {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
        return "learning_rate" in fields and "scalar" not in cls.slots.values()

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


def _definition(cls: type, name: str) -> int:
    """The place, among the bases of a class, of the first that defines this name."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


def checked_update(
    optimizer: RowOptimizer,
    values: Rows,
    gradients: Rows,
    slots: Slots,
    step: Step,
    row_mean: RowMean,
) -> Changes:
    """The result of `RowOptimizer.update_values`, which takes the same; slots keep their dtypes.

    Raises:
        UserError: it isn't a change for each number and the slots, of the same shapes, all real.
    """
    owner = f"optimizer {type(optimizer).__name__}"
    result = optimizer.update_values(values, gradients, dict(slots), step, row_mean)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise UserError(
            f"{owner}: expected changes [K, d] and a dict of slots from its update, got {result!r}"
        )
    change, new = result
    if new.keys() != slots.keys():
        raise UserError(
            f"{owner}: expected the slots {', '.join(slots) or 'none'} from its update, got "
            f"{', '.join(map(str, new)) or 'none'}"
        )

    def checked(what: str, found: Any, like: Array) -> Array:
        array = jnp.asarray(found)
        real = np.can_cast(array.dtype, like.dtype, "same_kind") and not jnp.iscomplexobj(array)
        if array.shape != like.shape or not real:
            raise UserError(
                f"{owner}: expected {what} of shape {like.shape} from its update, as {like.dtype}, "
                f"got {array.shape}, {array.dtype}"
            )
        return array

    change = checked("changes [K, d]", change, values)
    found = {name: checked(f"slot {name}", new[name], old) for name, old in slots.items()}
    return change, {name: x.astype(slots[name].dtype) for name, x in found.items()}


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
