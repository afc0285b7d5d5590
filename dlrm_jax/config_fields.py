"""The fields of the config: their help, the check of their values, and NAME=VALUE settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args, get_origin

from dlrm_jax.errors import UserError

INT32_MAX = 2**31 - 1
SEED_MAX = 2**63 - 1
"""The greatest seed that ``jax.random.key`` takes."""

FLOAT32_MAX = 2.0**128 - 2.0**104


def field(default: Any, text: str, low: int | None = None, high: int | None = None) -> Any:
    """A field of `Config` with what ``--help`` says of it.

    Args:
        default: value of the field.
        text: sentence on its meaning and unit; ends in "; such as VALUE." unless the help lists
            the values.
        low: least number that is allowed, in a tuple for each item.
        high: greatest one, such as that of an int32 for what JAX reads as one.
    """
    return dataclasses.field(default=default, metadata={"text": text, "low": low, "high": high})


def check_field(field: dataclasses.Field[Any], value: object, kind: object) -> None:
    """Checks the value of a field.

    Args:
        field: field that `field` has made.
        value: value to check.
        kind: type of the field.

    Raises:
        UserError: the value is of another type, not finite, too low or too high; the message
            begins with the name.
    """
    _check_type(field.name, value, kind)
    low, high = field.metadata["low"], field.metadata["high"]
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, float) and not abs(item) <= FLOAT32_MAX:  # also catches NaN
            raise UserError(f"{field.name}: expected a finite float32, got {item}")
        if low is not None and item < low:
            raise UserError(f"{field.name}: expected at least {low}, got {item}")
        if high is not None and item > high:
            raise UserError(f"{field.name}: expected at most {high}, got {item}")


def read_settings(
    field: str, items: Iterable[str], names: Collection[str], expected: str
) -> dict[str, str]:
    """Reads ``("NAME=VALUE", …)`` as a mapping.

    Args:
        field: name of the field, for messages.
        items: items of the field.
        names: names that are allowed; one may have = in it.
        expected: description of an item, for messages.

    Raises:
        UserError: an item isn't of that form, or a name is unknown or set twice.
    """
    settings: dict[str, str] = {}
    for item in items:
        name = max((name for name in names if item.startswith(f"{name}=")), key=len, default=None)
        if name is None:
            raise UserError(f"{field}: expected {expected}, got {item!r}")
        if name in settings:
            raise UserError(f"{field}: {name} is set twice")
        settings[name] = item[len(name) + 1 :]
    return settings


def _check_type(name: str, value: object, kind: object) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")
        return
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        good = isinstance(value, tuple) and all(type(x) in _accepted(item) for x in value)
        wanted = f"a tuple of {item.__name__}"
    else:
        assert isinstance(kind, type)
        good = type(value) in _accepted(kind)
        wanted = kind.__name__
    if not good:
        raise UserError(f"{name}: expected {wanted}, got {value!r}")


def _accepted(kind: type) -> tuple[type, ...]:
    return (int, float) if kind is float else (kind,)
