"""The fields of the config: their help, the check of their values, and NAME=VALUE settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args, get_origin

from dlrm_jax.errors import UserError


def field(default: Any, text: str, low: int | None = None) -> Any:
    """A field of `Config` with what ``--help`` says of it.

    Args:
        default: value of the field.
        text: sentence on its meaning and unit; ends in "; such as VALUE." unless the help lists
            the values.
        low: least number that is allowed, in a tuple for each item.
    """
    return dataclasses.field(default=default, metadata={"text": text, "low": low})


def check_field(field: dataclasses.Field[Any], value: object, kind: object) -> None:
    """Checks the value of a field.

    Args:
        field: field that `field` has made.
        value: value to check.
        kind: type of the field.

    Raises:
        UserError: the value is of another type or too low; the message begins with the name.
    """
    _check_type(field.name, value, kind)
    low = field.metadata["low"]
    for item in value if isinstance(value, tuple) else (value,):
        if low is not None and not item >= low:  # also catches NaN
            raise UserError(f"{field.name}: expected at least {low}, got {item}")


def read_settings(
    field: str, items: Iterable[str], names: Collection[str], expected: str
) -> dict[str, str]:
    """Reads ``("NAME=VALUE", …)`` as a mapping.

    Args:
        field: name of the field, for messages.
        items: items of the field.
        names: names that are allowed.
        expected: description of an item, for messages.

    Raises:
        UserError: an item isn't of that form, or a name is unknown or set twice.
    """
    settings: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or name not in names:
            raise UserError(f"{field}: expected {expected}, got {item!r}")
        if name in settings:
            raise UserError(f"{field}: {name} is set twice")
        settings[name] = value
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
