"""Optax transforms as optimizers of tables."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dlrm_jax.embedding.by_value import ByValue, optimizer_key, value_key
from dlrm_jax.embedding.probe import ELEMENTWISE, check_rows_apart
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

# The state of large tables may have other leaves, as in `optax.adafactor`.
_SHAPES = [(6, 4), (3, 2), (1, 1), (1024, 512), (2**20, 128)]


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
        kinds = _state_kinds(ByValue(value_key(self.transform), self.transform))
        object.__setattr__(self, "slots", kinds)
        check_rows_apart(self, dim=4, width=2, elementwise=True)

    def update_values(
        self, values: Rows, gradients: Rows, slots: Slots, step: Step, row_mean: RowMean
    ) -> Changes:
        """See `RowOptimizer.update_values`; counts in ``slots`` stand for ``step``."""
        del step, row_mean
        structure = jax.tree.structure(jax.eval_shape(self.transform.init, values))
        state = jax.tree.unflatten(structure, [slots[name] for name in self.slots])
        updates, state = self.transform.update(gradients, state, values)
        if jax.tree.structure(state) != structure:
            raise TypeError("an update changes the structure of the state")
        return updates, self._named(state)  # pyright: ignore[reportReturnType]

    def initial_slots(self, values: Float[Array, "R d"]) -> Slots:
        """See `RowOptimizer.initial_slots`."""
        return self._named(self.transform.init(values))

    def _named(self, state: optax.OptState) -> Slots:
        return dict(zip(self.slots, map(jnp.asarray, jax.tree.leaves(state)), strict=True))


@functools.lru_cache(maxsize=128)
def _state_kinds(transform: ByValue) -> Mapping[str, SlotKind]:
    """The kind of each leaf of a transform's state, by name, in the order of the leaves."""
    first, *others = [_kinds(transform.value, shape) for shape in _SHAPES]
    if any(kinds != first for kinds in others):
        raise UserError(
            f"optax transform: its state differs between tables of shapes {_SHAPES[0]} and "
            f"{_SHAPES[-1]}; {ELEMENTWISE}"
        )
    return first


def _kinds(transform: optax.GradientTransformation, shape: tuple[int, int]) -> dict[str, SlotKind]:
    try:
        state = jax.eval_shape(transform.init, jax.ShapeDtypeStruct(shape, jnp.float32))
    except Exception as error:
        raise UserError(f"optax transform: failed on rows of shape {shape}: {error}") from error
    for node in jax.tree.leaves(state, is_leaf=_gathers):
        if _gathers(node):
            raise UserError(
                f"optax transform: it gathers the gradients of several steps "
                f"({type(node).__name__}) and applies them in the last one, but a row is updated "
                f"only in the steps that read it; accumulate micro-batches of one step instead"
            )
    found: dict[str, SlotKind] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="_") or "state"
        number = not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        if leaf.shape not in (shape, ()) or not number or name in found:
            raise UserError(
                f"optax transform: expected a state of arrays of the rows' shape and of single "
                f"numbers, got {name} of shape {leaf.shape} and type {leaf.dtype} for rows of "
                f"shape {shape}; {ELEMENTWISE}"
            )
        found[name] = "element" if leaf.shape == shape else "scalar"
    return found


def _gathers(state: Any) -> bool:
    """Whether it is the state of `optax.MultiSteps` or `optax.apply_every`.

    Updates can't tell: those of a warm-up with momentum are alike.
    """
    return type(state).__name__ in ("MultiStepsState", "ApplyEvery")


def as_row_optimizer(optimizer: Any, owner: str) -> RowOptimizer:
    """The optimizer itself, or `RowOptax` of a transform.

    Its updates are checked where the width of its tables and their placement are known, in `slab`.

    Args:
        optimizer: argument of a user: a `RowOptimizer` or an optax transform.
        owner: name of the argument or table, for errors.

    Raises:
        UserError: the argument is neither, can't be hashed, has slots of other kinds, or is a
            transform that isn't elementwise.
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
        if not isinstance(optimizer.slots, Mapping):
            raise UserError(f"slots: expected a dict of kinds by name, got {optimizer.slots!r}")
        for slot, kind in optimizer.slots.items():
            if slot == "table" or kind not in ("row", "element", "scalar"):
                raise UserError(
                    f"slots: expected names other than table and row, element or scalar, got "
                    f"{slot}: {kind}"
                )
    except UserError as error:
        raise UserError(f"{owner}: {error}") from error
    return optimizer
