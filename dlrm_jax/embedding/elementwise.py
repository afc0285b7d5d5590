"""Checks with small random rows that an optax transform is elementwise.

A table's rows, and sometimes its columns, lie on several devices, and an update sees only the rows
that the batch touched. So the update of an element must depend on that element alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from dlrm_jax.embedding.by_value import value_key
from dlrm_jax.embedding.row_optimizer import SlotKind
from dlrm_jax.errors import UserError

_ROWS, _COLUMNS, _STEPS = 6, 4, 4
_ROW, _COLUMN = 2, 1  # the element that is changed
# The state of large tables may have other leaves, as in `optax.adafactor`.
_SHAPES = [(_ROWS, _COLUMNS), (3, 2), (1, 1), (1024, 512), (2**20, 128)]
_ADVICE = (
    "tables take elementwise transforms only; use this one for the dense parameters, clip by "
    "RowGradients.squared_norm, or derive an optimizer from RowOptimizer, whose update is given "
    "the mean over a row's columns"
)


def state_kinds(transform: optax.GradientTransformation) -> Mapping[str, SlotKind]:
    """The kind of each leaf of a transform's state, by name, in the order of the leaves.

    Args:
        transform: optax transform of one array of rows, [K, d].

    Raises:
        UserError: the transform isn't elementwise; the message names the broken rule.
    """
    return _state_kinds(_ByValue(value_key(transform), transform))


@dataclasses.dataclass(frozen=True)
class _ByValue:
    """A transform that is compared by its key, for the cache."""

    key: Hashable
    transform: optax.GradientTransformation = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=128)
def _state_kinds(cached: _ByValue) -> Mapping[str, SlotKind]:
    kinds = [_kinds(cached.transform, shape) for shape in _SHAPES]
    if any(kind != kinds[0] for kind in kinds):
        raise UserError(
            f"optax transform: its state differs between tables of shapes {_SHAPES[0]} and "
            f"{_SHAPES[-1]}; {_ADVICE}"
        )
    _check(cached.transform, kinds[0])
    return kinds[0]


def _kinds(transform: optax.GradientTransformation, shape: tuple[int, int]) -> dict[str, SlotKind]:
    state = _run(transform.init, jax.ShapeDtypeStruct(shape, jnp.float32))
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
                f"shape {shape}; {_ADVICE}"
            )
        found[name] = "element" if leaf.shape == shape else "scalar"
    return found


def _gathers(state: Any) -> bool:
    """Whether it is the state of `optax.MultiSteps` or `optax.apply_every`.

    Updates can't tell: those of a warm-up with momentum are alike.
    """
    return type(state).__name__ in ("MultiStepsState", "ApplyEvery")


def _run(function: Callable, *args: jax.ShapeDtypeStruct) -> optax.OptState:
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        raise UserError(
            f"optax transform: failed on rows of shape {args[-1].shape}, from gradients and "
            f"values alone: {error}"
        ) from error


class _Case(NamedTuple):
    """Gradients and values whose updates are compared with those of the first case."""

    rule: str  # that the transform breaks if the updates differ
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
            first = first[:, self.rows, self.columns]
            ignored = ignored if self.kept is None else ~self.kept
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


def _cases() -> Iterator[_Case]:
    """Yields the first case, then the cases that are compared with it."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(_STEPS, _ROWS, _COLUMNS)).astype(np.float32)
    values = rng.normal(size=(_ROWS, _COLUMNS)).astype(np.float32)
    yield _Case("", "", gradients, values)
    order = rng.permutation(_ROWS)
    yield _Case("mixes rows", "the rows permuted", gradients[:, order], values[order], rows=order)
    for rule, what, place in (
        ("mixes rows", f"of row {_ROW}", _ROW),
        ("mixes the columns of a row", f"of element {(_ROW, _COLUMN)}", (_ROW, _COLUMN)),
    ):
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
    yield _Case(
        "depends on the number of rows or columns",
        "3 of 6 rows and 2 of 4 columns",
        gradients[:, :3, :2],
        values[:3, :2],
        rows=slice(3),
        columns=slice(2),
    )


def _check(transform: optax.GradientTransformation, kinds: Mapping[str, SlotKind]) -> None:
    first, *others = _cases()
    *same_shape, smaller = others
    expected, *results = _results(transform, kinds, [first, *same_shape])
    results += _results(transform, kinds, [smaller])
    for case, result in zip(others, results, strict=True):
        for name, x in result.items():
            if difference := case.difference(x, expected[name]):
                raise UserError(
                    f"optax transform: it {case.rule}. With {case.change}, {name} {difference}; "
                    f"{_ADVICE}"
                )


def _results(
    transform: optax.GradientTransformation,
    kinds: Mapping[str, SlotKind],
    cases: Sequence[_Case],
) -> list[dict[str, np.ndarray]]:
    """Updates and state of every step of each case; all cases have one shape."""
    run = functools.partial(_steps, transform, kinds)
    gradients = np.stack([case.gradients for case in cases])
    values = np.stack([case.values for case in cases])
    _run(run, *(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in (gradients, values)))
    found = jax.jit(lambda *both: jax.lax.map(lambda one: run(*one), both))(gradients, values)
    found = {name: np.asarray(x) for name, x in found.items()}
    return [{name: x[i] for name, x in found.items()} for i in range(len(cases))]


def _steps(
    transform: optax.GradientTransformation,
    kinds: Mapping[str, SlotKind],
    gradients: Float[Array, "S K d"],
    values: Float[Array, "K d"],
) -> dict[str, Shaped[Array, "S *_"]]:
    """The updates and the state's leaves after every step of one case."""
    leaves, structure = jax.tree.flatten(transform.init(values))
    leaves = [jax.lax.convert_element_type(x, jnp.result_type(x)) for x in leaves]

    def step(carry: tuple[Any, list[Array]], gradients: Array) -> tuple[Any, Any]:
        values, leaves = carry
        state = jax.tree.unflatten(structure, leaves)
        updates, state = transform.update(gradients, state, values)
        if jax.tree.structure(state) != structure:
            raise TypeError("an update changes the structure of the state")
        new = [
            jax.lax.convert_element_type(x, old.dtype)
            for x, old in zip(jax.tree.leaves(state), leaves, strict=True)
        ]
        return (values + updates, new), (updates, new)

    _, (updates, history) = jax.lax.scan(step, (values, leaves), gradients)
    return {"the update": updates, **dict(zip(kinds, history, strict=True))}
