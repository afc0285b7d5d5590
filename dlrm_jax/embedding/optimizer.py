"""The optimizers of tables, by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from dlrm_jax.embedding.row_optimizer import (
    Changes,
    NativeUnit,
    RowMean,
    RowOptimizer,
    Rows,
    Slots,
    Step,
)
from dlrm_jax.errors import UserError
from dlrm_jax.native import ops

Rate = float | Callable[[Step], ArrayLike]
"""A learning rate, or a schedule of the number of updates done so far (from 0), as in optax."""


def rate_at(learning_rate: Rate, step: Step) -> float | Float[Array, ""]:
    """The learning rate of the update after ``step`` earlier ones."""
    return learning_rate(step) if callable(learning_rate) else learning_rate  # pyright: ignore


def at_rate(optimizer: RowOptimizer, factor: Float[Array, ""] | None) -> RowOptimizer:
    """An optimizer with native updates, at ``factor`` times its learning rate; None for 1."""
    if factor is None:
        return optimizer
    rate: Rate = optimizer.learning_rate  # pyright: ignore[reportAttributeAccessIssue]
    changes: Any = {"learning_rate": lambda step: factor * rate_at(rate, step)}
    return dataclasses.replace(optimizer, **changes)  # pyright: ignore[reportArgumentType]


def check_rate(rate: Any) -> None:
    """Checks a learning rate: a schedule, or a number.

    Raises:
        UserError: it is neither, or not finite, or negative. A rate of 0 freezes a table.
    """
    if not callable(rate):
        _check_number("learning_rate", rate, "a finite number of 0 or more, or a schedule")


def _check_number(
    name: str,
    value: Any,
    expected: str = "a finite number of 0 or more",
    limit: float = math.inf,
) -> None:
    """Checks a setting of an optimizer; its values would spoil the tables without a word.

    Raises:
        UserError: it isn't a number, or isn't from 0 to below ``limit``.
    """
    if isinstance(value, Tracer):
        return
    is_number = np.ndim(value) == 0 and any(
        jnp.issubdtype(np.asarray(value).dtype, kind) for kind in (jnp.integer, jnp.floating)
    )
    if not is_number or not 0 <= value < limit:
        raise UserError(f"{name}: expected {expected}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class SGD(RowOptimizer):
    """``w -= rate · g``."""

    learning_rate: Rate
    linear: ClassVar[bool] = True
    native: ClassVar[NativeUnit] = "columns"
    fusible: ClassVar[bool] = True

    def __post_init__(self):
        check_rate(self.learning_rate)

    def update(self, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean) -> Changes:
        """See `RowOptimizer.update`."""
        return -rate_at(self.learning_rate, step) * gradients, slots

    def native_update(
        self,
        table: Float[Array, "R d"],
        slots: Slots,
        blocks: Sequence[ops.BlockGradients],
        step: Step,
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
    slots: ClassVar = {"accumulator": "element"}
    fusible: ClassVar[bool] = True

    def __post_init__(self):
        check_rate(self.learning_rate)
        _check_number("eps", self.eps)
        _check_number("initial_accumulator", self.initial_accumulator)

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """See `RowOptimizer.initial_slots`."""
        zeros = super().initial_slots(values)["accumulator"]
        return {"accumulator": jnp.full_like(zeros, self.initial_accumulator)}

    def update(self, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean) -> Changes:
        """See `RowOptimizer.update`."""
        accumulator = slots["accumulator"] + gradients**2
        rate = rate_at(self.learning_rate, step)
        return -rate * gradients / (jnp.sqrt(accumulator) + self.eps), {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class RowWiseAdagrad(Adagrad):
    """``a += mean(g²); w -= rate · g / (√a + eps)`` with one accumulator per row.

    The mean runs over the columns of the row. It is the formula of the DLRM reference
    (``RWSAdagrad``) and FBGEMM (``EXACT_ROWWISE_ADAGRAD``), with a from 0.
    """

    slots: ClassVar = {"accumulator": "row"}
    native: ClassVar[NativeUnit] = "rows"
    fusible: ClassVar[bool] = True

    def update(self, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean) -> Changes:
        """See `RowOptimizer.update`."""
        accumulator = slots["accumulator"] + row_mean(gradients**2)
        scale = rate_at(self.learning_rate, step) / (jnp.sqrt(accumulator) + self.eps)
        return -scale[:, None] * gradients, {"accumulator": accumulator}

    def native_update(
        self,
        table: Float[Array, "R d"],
        slots: Slots,
        blocks: Sequence[ops.BlockGradients],
        step: Step,
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
    slots: ClassVar = {"mean": "element", "variance": "element"}
    fusible: ClassVar[bool] = True

    def __post_init__(self):
        check_rate(self.learning_rate)
        _check_number("eps", self.eps)
        for name in ("b1", "b2"):
            expected = "a number from 0 to below 1"
            _check_number(name, getattr(self, name), expected, limit=1)

    def update(self, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean) -> Changes:
        """See `RowOptimizer.update`."""
        # An array, as Mosaic has powers of arrays alone.
        count = jnp.full((1, 1), step + 1, gradients.dtype)
        mean = self.b1 * slots["mean"] + (1 - self.b1) * gradients
        variance = self.b2 * slots["variance"] + (1 - self.b2) * gradients**2
        corrected_mean = mean / (1 - self.b1**count)
        corrected_variance = variance / (1 - self.b2**count)
        rate = rate_at(self.learning_rate, step)
        updates = -rate * corrected_mean / (jnp.sqrt(corrected_variance) + self.eps)
        return updates, {"mean": mean, "variance": variance}


OPTIMIZERS: dict[str, Callable[..., RowOptimizer]] = {
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
        eps: eps of the optimizer; None for its default.

    Raises:
        UserError: the name is unknown, or the optimizer is given an eps and has none.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if eps is None:
        return OPTIMIZERS[name](learning_rate)
    if not hasattr(OPTIMIZERS[name], "eps"):
        raise UserError(f"eps: {name} has none, got {eps}; leave it out")
    return OPTIMIZERS[name](learning_rate, eps=eps)
