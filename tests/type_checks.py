"""The checker of annotations, by which an int is a float, as in Python's type system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks a function of a module or a class.

    Functions within functions aren't: each call would make another one to analyse, which took an
    eighth of the tests' time.
    """
    return function if "<locals>" in function.__qualname__ else _checked(function)
