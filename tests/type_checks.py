"""Annotations, checked at every call; an int is a float, as in Python's type system."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, install_import_hook

_in_scope_of_axes = jaxtyping.jaxtyped
# A TypeError, which the package takes for one of what users have written.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))


def install() -> None:
    """Checks the package, whose modules aren't imported yet.

    jaxtyping's own decorator checks arguments twice in each call, and defines functions where the
    package defines one within another: an eighth of the tests' time.
    """
    jaxtyping.jaxtyped = lambda *, typechecker: checked
    install_import_hook("dlrm_jax", None)


def checked(defined: Any) -> Any:
    """The function, or the class with the function that makes its objects, checked.

    Functions within functions aren't: each call would make another one to analyse.
    """
    if not isinstance(defined, type):
        return defined if "<locals>" in defined.__qualname__ else _checked(defined)
    if dataclasses.is_dataclass(defined) and "__init__" in vars(defined):
        type.__setattr__(defined, "__init__", _checked(defined.__init__))
    return defined


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    annotations = function.__annotations__
    if any("{" in str(given) for given in annotations.values()):  # axes that are arguments
        return _in_scope_of_axes(function, typechecker=_check)
    hints = {name: _hint(given, function) for name, given in annotations.items()}
    function.__annotations__ = hints
    with_hints = _check(function)
    function.__annotations__ = annotations
    if not any(map(_has_axes, hints.values())):
        return with_hints

    @functools.wraps(function)
    def with_axes(*arguments: Any, **options: Any) -> Any:
        with _in_scope_of_axes("context"):
            return with_hints(*arguments, **options)

    return with_axes


def _hint(annotation: Any, function: Callable[..., Any]) -> Any:
    """What it means where the function is defined; anything if that isn't known yet."""
    annotated = SimpleNamespace(__annotations__={"hint": annotation})
    try:
        return typing.get_type_hints(annotated, function.__globals__, include_extras=True)["hint"]
    except NameError:
        return Any


def _has_axes(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_axes, typing.get_args(hint)))
