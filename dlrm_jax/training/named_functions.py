"""Functions of a user's own that a setting names, as MODULE:FUNCTION."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dlrm_jax.errors import UserError


def named_function(field: str, text: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names, whose module is imported.

    Args:
        field: field of the config, for messages.
        text: the name.

    Raises:
        UserError: it can't be imported, or can't be called.
    """
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{field}: can't import {text!r}: {error}") from error
    if not callable(found):
        raise UserError(f"{field}: expected {text!r} to be a function, got {found!r}")
    return found
