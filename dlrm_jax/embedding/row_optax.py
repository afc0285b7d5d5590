"""Optax transforms as optimizers of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.elementwise import state_kinds
from dlrm_jax.embedding.row_optimizer import (
    Changes,
    RowMean,
    RowOptimizer,
    Rows,
    SlotKind,
    Slots,
    Step,
)
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RowOptax(RowOptimizer):
    """An optax transform, applied to the touched rows alone.

    It is lazy: a row that no id of the batch names keeps its values and its state. Momentum,
    moments and weight decay act on a row in the steps that touch it; counts, and so schedules and
    bias corrections, advance in every step. If every step touches all rows, the result is that of
    the dense transform.

    Args:
        transform: an elementwise transform: each element's update depends on its own gradients,
            value and state, and on the number of the step. `optax.adamw`, `optax.rmsprop`,
            momentum, schedules and chains of these are; a transform that takes a norm or a mean
            over rows or columns isn't.

    Attributes:
        slots: kinds of the leaves of the transform's state, by name. All tables with this optimizer
            share the scalars.

    Raises:
        UserError: the transform isn't elementwise, as far as small random rows show.
    """

    transform: optax.GradientTransformation
    slots: Mapping[str, SlotKind] = dataclasses.field(init=False, repr=False, compare=False)  # pyright: ignore

    def __post_init__(self):
        object.__setattr__(self, "slots", state_kinds(self.transform))

    def update_values(
        self, values: Rows, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean
    ) -> Changes:
        """See `RowOptimizer.update_values`; counts in ``slots`` stand for ``step``."""
        del step, row_mean
        structure = jax.tree.structure(jax.eval_shape(self.transform.init, values))
        state = jax.tree.unflatten(structure, [slots[name] for name in self.slots])
        updates, state = self.transform.update(gradients, state, values)
        return updates, self._named(state)  # pyright: ignore[reportReturnType]

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """See `RowOptimizer.initial_slots`."""
        return self._named(self.transform.init(values))

    def _named(self, state: optax.OptState) -> Slots:
        return dict(zip(self.slots, map(jnp.asarray, jax.tree.leaves(state)), strict=True))


def as_row_optimizer(optimizer: Any, owner: str) -> RowOptimizer:
    """The optimizer itself, checked, or `RowOptax` of a transform.

    Args:
        optimizer: argument of a user: a `RowOptimizer` or an optax transform.
        owner: name of the argument or table, for errors.

    Raises:
        UserError: the argument is neither, can't be hashed or isn't elementwise.
    """
    try:
        if isinstance(optimizer, optax.GradientTransformation):
            optimizer = RowOptax(optimizer)
        if not isinstance(optimizer, RowOptimizer):
            raise UserError(
                f"expected a RowOptimizer such as RowWiseAdagrad(0.1) or an optax transform such "
                f"as optax.adam(1e-3), got {optimizer!r}; derive optimizers of your own from "
                f"RowOptimizer"
            )
        optimizer_key(optimizer)
        for slot, kind in optimizer.slots.items():
            if slot == "table" or kind not in ("row", "element", "scalar"):
                raise UserError(
                    f"slots: expected names other than table and row, element or scalar, got "
                    f"{slot}: {kind}"
                )
    except UserError as error:
        raise UserError(f"{owner}: {error}") from error
    return optimizer
