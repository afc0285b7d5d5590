"""Keys that compare optimizers and schedules by value, where Python compares functions by identity.

Two calls of ``optax.cosine_decay_schedule(1e-3, 1000)`` give two functions that never compare
equal, though they share their code and their closures hold the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Hashable
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.core import Tracer

from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.errors import UserError


def optimizer_key(optimizer: RowOptimizer | None) -> Hashable:
    """A key that is equal for optimizers whose tables may share one array, see `value_key`.

    Args:
        optimizer: optimizer of the tables; None if they are frozen.

    Raises:
        UserError: the optimizer can't be hashed, naming the field.
    """
    if _is_hashable(optimizer):
        return value_key(optimizer)
    kind = type(optimizer).__name__
    wanted = f"optimizer {kind}: expected a frozen dataclass of fields that can be hashed"
    for name, value in vars(optimizer).items():
        if not _is_hashable(value):
            raise UserError(
                f"{wanted}, but {name} is a value of type {type(value).__name__}, which can't; use "
                f"a number, a tuple or a frozen dataclass"
            )
    raise UserError(f"{wanted}; write @dataclasses.dataclass(frozen=True) above class {kind}")


def _is_hashable(value: Any) -> TypeGuard[Hashable]:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def value_key(value: Any, parents: tuple[int, ...] = ()) -> Hashable:
    """A key that is equal for values that do the same.

    Functions are compared by code, module, defaults and closure; tuples, lists, dicts, arrays,
    partials, bound methods and frozen dataclasses by their parts; everything else as Python
    compares it, or by identity if it can't be hashed.

    Args:
        value: an optimizer, a schedule, or a part of one.
        parents: ids of the values that hold it.
    """
    if id(value) in parents:  # a function whose closure holds itself
        return _Same(value)
    parents = (*parents, id(value))

    def keys(*parts: Any) -> tuple[Hashable, ...]:
        return tuple(value_key(part, parents) for part in parts)

    kind = type(value)
    if isinstance(value, types.FunctionType):
        try:
            closure = [cell.cell_contents for cell in value.__closure__ or ()]
        except ValueError:  # a variable that isn't assigned yet
            return _Same(value)
        parts = keys(value.__defaults__, value.__kwdefaults__, closure)
        return kind, value.__code__, _Same(value.__globals__), parts
    if isinstance(value, types.MethodType):
        return kind, keys(value.__func__, value.__self__)
    if isinstance(value, functools.partial):
        return kind, keys(value.func, value.args, value.keywords)
    if isinstance(value, tuple | list):
        return kind, keys(*value)
    if isinstance(value, dict):
        return kind, keys(*value.items())
    if isinstance(value, np.ndarray):
        return kind, value.dtype, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value) and kind.__dataclass_params__.frozen:  # pyright: ignore
        fields = [field for field in dataclasses.fields(value) if field.compare]
        return kind, keys(*(getattr(value, field.name) for field in fields))
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        return value_key(np.asarray(value)) if value.is_fully_addressable else _Same(value)
    # Without its type: optax's schedules turn their integers into floats when called.
    return value if _is_hashable(value) else _Same(value)


@dataclasses.dataclass(frozen=True)
class ByValue:
    """A value that caches compare by its key."""

    key: Hashable
    value: Any = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """A key that equals only itself. It keeps its value alive, so that no other gets its id."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
