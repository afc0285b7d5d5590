"""Checks with small random rows that an optimizer updates each row by itself.

A table's rows lie on several devices, and an update sees only the rows that the batch touched. So
the update of a row must depend on that row and the step alone, and a scalar on nothing but the
step. Where the columns of a table are split, means over them must be those of ``row_mean``.

The rows are few, and so are the steps: early and late ones, some with tiny gradients. Mixing that
needs more rows, other numbers, or a step between these isn't seen. In a late step, ``step`` and the
integers among the scalar slots are large; a count of another dtype isn't.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dlrm_jax.embedding.by_value import ByValue, optimizer_key
from dlrm_jax.embedding.row_optimizer import (
    RowMean,
    RowOptimizer,
    Slots,
    checked_update,
    mean_of_columns,
)
from dlrm_jax.errors import UserError

_ROWS, _FEWER = 6, 3
_STEPS = np.array([0, 1, 2, 3, 10, 1000, 10**6, 10**6 + 1], np.int32)  # done before each update
_SIZES = np.array([1, 1, 1, 1e-5, 1, 1, 1, 1e-5], np.float32)  # of the gradients of each
_ROW, _COLUMN = 2, 1  # the element that is changed
_AXIS = "shards"

_ADVICE = (
    "the change of a row may depend on that row and the step, and a scalar slot on its value "
    "before and the step"
)
ELEMENTWISE = (
    "tables take elementwise transforms only; use this one for the dense parameters, clip by "
    "RowGradients.squared_norm, or derive an optimizer from RowOptimizer, whose update is given "
    "the mean over a row's columns"
)


def check_rows_apart(
    optimizer: RowOptimizer, dim: int, width: int, elementwise: bool = False
) -> None:
    """Runs an optimizer on small rows; equal optimizers once.

    Args:
        optimizer: optimizer of rows, [K, dim].
        dim: width of its tables.
        width: width of a vector on one shard, less than ``dim`` if columns are split.
        elementwise: whether the update of each element must depend on that element alone, too.

    Raises:
        UserError: the update failed or mixes rows; the message names the broken rule.
    """
    _check(ByValue(optimizer_key(optimizer), optimizer), dim, width, elementwise)


@functools.lru_cache(maxsize=128)
def _check(cached: ByValue, dim: int, width: int, elementwise: bool) -> None:
    owner = "optax transform" if elementwise else f"optimizer {type(cached.value).__name__}"
    advice, split = _ADVICE, ""
    if width < dim:
        split = (
            f". The columns of the table are split over {dim // width} shards (column_wise), and "
            f"an update gets {width} of {dim}: take means over a row with row_mean, or place the "
            f"table otherwise"
        )
        advice += split
    if elementwise:
        advice, split = ELEMENTWISE, ""
    first, *others = _cases(dim, width, elementwise)
    count = len(others) - dim // width
    expected, *results = _results(cached.value, [first, *others[:count]], owner)
    results += _results(cached.value, others[count:], owner, split, width < dim)
    for case, result in zip(others, results, strict=True):
        for name, x in result.items():
            if difference := case.difference(x, expected[name]):
                raise UserError(
                    f"{owner}: it {case.rule}. With {case.change}, {name} {difference}; {advice}"
                )


class _Case(NamedTuple):
    """Gradients and values whose updates are compared with those of the first case."""

    rule: str  # that the optimizer breaks if the updates differ
    change: str  # of the gradients or values, in words
    gradients: Float[np.ndarray, "S K d"]  # of S steps
    values: Float[np.ndarray, "K d"]  # before the first step
    rows: slice | Shaped[np.ndarray, " K"] = slice(None)  # of the first case
    columns: slice = slice(None)  # of the first case
    kept: Shaped[np.ndarray, "K d"] | None = None  # elements that mustn't differ; None for all

    def difference(
        self, x: Shaped[np.ndarray, "S *_"], first: Shaped[np.ndarray, "S *_"]
    ) -> str | None:
        """The first difference from the first case, in words; None if there is none."""
        # The same program does the same for elements that are the same.
        tolerance = 1e-4 if self.kept is None else 0.0
        ignored = np.zeros((), bool)
        if x.ndim > 1:  # a scalar must not change at all
            first = first[:, self.rows]
            ignored = ignored if self.kept is None else ~self.kept
            ignored = ignored.all(axis=1) if x.ndim == 2 and ignored.ndim else ignored
        if x.ndim > 2:
            first = first[..., self.columns]
        x, first = x.astype(np.float64), first.astype(np.float64)
        # Sums over steps may cancel, so that only rounding errors are left.
        rounding = 1e-2 * tolerance * np.nan_to_num(np.abs(first)).max(axis=0)
        with np.errstate(invalid="ignore"):
            close = np.abs(x - first) <= tolerance * np.abs(first) + rounding
        same = ignored | close | (x == first) | (np.isnan(x) & np.isnan(first))
        if same.all():
            return None
        where = tuple(np.argwhere(~same)[0].tolist())
        step, *place = where
        return (
            f"at {tuple(place) or 'all rows'} is {x[where]:.9g} after {_STEPS[step]} steps, and "
            f"{first[where]:.9g} without"
        )


def _cases(dim: int, width: int, elementwise: bool) -> Iterator[_Case]:
    """Yields the first case, then the cases that are compared with it."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(len(_STEPS), _ROWS, dim)).astype(np.float32)
    gradients *= _SIZES[:, None, None]
    values = rng.normal(size=(_ROWS, dim)).astype(np.float32)
    yield _Case("", "", gradients, values)
    order = rng.permutation(_ROWS)
    yield _Case("mixes rows", "the rows permuted", gradients[:, order], values[order], rows=order)
    row = ("mixes rows", f"of row {_ROW}", _ROW)
    element = ("mixes the columns of a row", f"of element {(_ROW, _COLUMN)}", (_ROW, _COLUMN))
    for rule, what, place in (row, element) if elementwise else (row,):
        kept = np.ones((_ROWS, dim), bool)
        kept[place] = False
        for number in (0.0, 1e-12, 1e4, 1e18, np.inf, np.nan):
            changed = np.where(kept, gradients, np.float32(number))
            yield _Case(rule, f"gradients {what} {number:g}", changed, values, kept=kept)
        changed = gradients.copy()
        changed[1] = np.where(kept, changed[1], 0)  # in one step of several
        yield _Case(rule, f"a gradient {what} 0", changed, values, kept=kept)
        for number in (0.0, 1e6):
            changed = np.where(kept, values, np.float32(number))
            yield _Case(rule, f"the values {what} {number:g}", gradients, changed, kept=kept)
    rule, change = "depends on the number of rows", f"{_FEWER} of {_ROWS} rows"
    if width < dim:
        rule += " or columns, or on columns otherwise than by row_mean"
        change += f", and {width} of {dim} columns on each of {dim // width} devices"
    for start in range(0, dim, width):
        rows, columns = slice(_FEWER), slice(start, start + width)
        part = gradients[:, rows, columns], values[rows, columns]
        yield _Case(rule, change, *part, rows=rows, columns=columns)


def _results(
    optimizer: RowOptimizer,
    cases: Sequence[_Case],
    owner: str,
    advice: str = "",
    split: bool = False,
) -> list[dict[str, np.ndarray]]:
    """Changes and slots of every step of each case; with ``split``, the cases share rows."""
    gradients = np.stack([case.gradients for case in cases])
    values = np.stack([case.values for case in cases])

    def run(gradients: Array, values: Array) -> dict[str, Array]:
        one = functools.partial(_steps, optimizer, mean_of_columns)
        return jax.lax.map(lambda case: one(*case), (gradients, values))

    def mean_of_all_columns(x: Array) -> Array:
        return jax.lax.pmean(mean_of_columns(x), _AXIS)

    if split:
        run = jax.vmap(functools.partial(_steps, optimizer, mean_of_all_columns), axis_name=_AXIS)
    # It may be called while a function is traced, and makes NaNs and infinities on purpose.
    try:
        with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
            found = {name: np.asarray(x) for name, x in jax.jit(run)(gradients, values).items()}
    except UserError as error:
        raise UserError(f"{error}{advice}") from error
    except Exception as error:
        raise UserError(
            f"{owner}: failed on rows of shape {values.shape[1:]}, from gradients and values "
            f"alone: {type(error).__name__}: {error}{advice}"
        ) from error
    return [{name: x[i] for name, x in found.items()} for i in range(len(cases))]


def _steps(
    optimizer: RowOptimizer,
    row_mean: RowMean,
    gradients: Float[Array, "S K d"],
    values: Float[Array, "K d"],
) -> dict[str, Shaped[Array, "S *_"]]:
    """The changes and the slots after every step of one case."""

    def step(carry: tuple[Array, Slots], this: tuple[Array, ...]) -> tuple[Any, Any]:
        values, slots = carry
        count, left_out, gradients = this
        for name in counts:
            slots = {**slots, name: slots[name] + left_out.astype(slots[name].dtype)}
        change, slots = checked_update(optimizer, values, gradients, slots, count, row_mean)
        return (values + change.astype(values.dtype), slots), (change, slots)

    slots = optimizer.initial_slots(values)
    shapes = {"row": values.shape[:1], "element": values.shape, "scalar": ()}
    expected = {name: shapes[kind] for name, kind in optimizer.slots.items()}
    if (found := {name: jnp.shape(slot) for name, slot in slots.items()}) != expected:
        raise UserError(
            f"optimizer {type(optimizer).__name__}: expected slots of shapes {expected} from its "
            f"initial_slots for rows of shape {values.shape}, got {found}"
        )
    counts = [
        name
        for name, kind in optimizer.slots.items()
        if kind == "scalar" and jnp.issubdtype(slots[name].dtype, jnp.integer)
    ]
    steps = jnp.asarray(_STEPS, jnp.result_type(int)), jnp.asarray(np.diff(_STEPS, prepend=-1) - 1)
    _, (change, slots) = jax.lax.scan(step, (values, slots), (*steps, gradients))
    return {"the update": change, **slots}
