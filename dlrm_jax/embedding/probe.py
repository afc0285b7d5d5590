"""Checks with small random rows that an optimizer updates each row by itself.

A table's rows, and sometimes its columns, lie on several devices, and an update sees only the rows
that the batch touched. So the update of a row must depend on that row and the step alone, and means
over its columns must be those of ``row_mean``. A scalar must depend on nothing but the step.
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

_ROWS, _COLUMNS, _STEPS = 6, 4, 4
_ROW, _COLUMN = 2, 1  # the element that is changed
_FEWER = slice(3)
_HALVES = slice(_COLUMNS // 2), slice(_COLUMNS // 2, None)
_AXIS = "halves"

_ADVICE = (
    "the change of a row may depend on that row and the step, with means over its columns by "
    "row_mean, and a scalar slot on its value before and the step"
)
ELEMENTWISE = (
    "tables take elementwise transforms only; use this one for the dense parameters, clip by "
    "RowGradients.squared_norm, or derive an optimizer from RowOptimizer, whose update is given "
    "the mean over a row's columns"
)


def check_rows_apart(optimizer: RowOptimizer, elementwise: bool = False) -> None:
    """Runs an optimizer on small rows; equal optimizers once.

    Args:
        optimizer: optimizer of rows, [K, d].
        elementwise: whether the update of each element must depend on that element alone, too.

    Raises:
        UserError: the update failed or mixes rows; the message names the broken rule.
    """
    _check(ByValue(optimizer_key(optimizer), optimizer), elementwise)


@functools.lru_cache(maxsize=128)
def _check(cached: ByValue, elementwise: bool) -> None:
    owner = "optax transform" if elementwise else f"optimizer {type(cached.value).__name__}"
    first, *others = _cases(elementwise)
    *whole, left, right = others
    try:
        expected, *results = _results(cached.value, [first, *whole])
        results += _results(cached.value, [left, right])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{owner}: failed on rows of shape {(_ROWS, _COLUMNS)} or {(3, 2)}, from gradients and "
            f"values alone: {type(error).__name__}: {error}"
        ) from error
    for case, result in zip(others, results, strict=True):
        for name, x in result.items():
            if difference := case.difference(x, expected[name]):
                raise UserError(
                    f"{owner}: it {case.rule}. With {case.change}, {name} {difference}; "
                    f"{ELEMENTWISE if elementwise else _ADVICE}"
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
            f"at {tuple(place) or 'all rows'} is {x[where]:.9g} after step {step}, and "
            f"{first[where]:.9g} without"
        )


def _cases(elementwise: bool) -> Iterator[_Case]:
    """Yields the first case, then the cases that are compared with it."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(_STEPS, _ROWS, _COLUMNS)).astype(np.float32)
    values = rng.normal(size=(_ROWS, _COLUMNS)).astype(np.float32)
    yield _Case("", "", gradients, values)
    order = rng.permutation(_ROWS)
    yield _Case("mixes rows", "the rows permuted", gradients[:, order], values[order], rows=order)
    row = ("mixes rows", f"of row {_ROW}", _ROW)
    element = ("mixes the columns of a row", f"of element {(_ROW, _COLUMN)}", (_ROW, _COLUMN))
    for rule, what, place in (row, element) if elementwise else (row,):
        kept = np.ones((_ROWS, _COLUMNS), bool)
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
    for half in _HALVES:
        yield _Case(
            "depends on the number of rows or columns, or on columns otherwise than by row_mean",
            "3 of 6 rows, and 2 of 4 columns on each of two devices",
            gradients[:, _FEWER, half],
            values[_FEWER, half],
            rows=_FEWER,
            columns=half,
        )


def _results(optimizer: RowOptimizer, cases: Sequence[_Case]) -> list[dict[str, np.ndarray]]:
    """Changes and slots of every step of each case; cases with fewer columns share rows."""
    gradients = np.stack([case.gradients for case in cases])
    values = np.stack([case.values for case in cases])
    if values.shape[2] == _COLUMNS:

        def run(gradients: Array, values: Array) -> dict[str, Array]:
            one = functools.partial(_steps, optimizer, mean_of_columns)
            return jax.lax.map(lambda case: one(*case), (gradients, values))
    else:

        def mean_of_all_columns(x: Array) -> Array:
            return jax.lax.pmean(mean_of_columns(x), _AXIS)

        run = jax.vmap(functools.partial(_steps, optimizer, mean_of_all_columns), axis_name=_AXIS)
    # It may be called while a function is traced, and makes NaNs on purpose.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False):
        found = {name: np.asarray(x) for name, x in jax.jit(run)(gradients, values).items()}
    return [{name: x[i] for name, x in found.items()} for i in range(len(cases))]


def _steps(
    optimizer: RowOptimizer,
    row_mean: RowMean,
    gradients: Float[Array, "S K d"],
    values: Float[Array, "K d"],
) -> dict[str, Shaped[Array, "S *_"]]:
    """The changes and the slots after every step of one case."""

    def step(carry: tuple[Array, Slots], this: tuple[Array, Array]) -> tuple[Any, Any]:
        values, slots = carry
        count, gradients = this
        change, slots = checked_update(optimizer, values, gradients, slots, count, row_mean)
        return (values + change, slots), (change, slots)

    start = values, optimizer.initial_slots(values)
    _, (change, slots) = jax.lax.scan(step, start, (jnp.arange(_STEPS), gradients))
    return {"the update": change, **slots}
