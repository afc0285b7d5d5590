"""What a setting names of a user's own code, as MODULE:NAME."""

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
    found = imported(field, text)
    if not callable(found):
        raise UserError(f"{field}: expected {text!r} to be a function, got {found!r}")
    return found


def imported(field: str, text: str) -> Any:
    """What MODULE:NAME names, whose module is imported.

    Args:
        field: field of the config, for messages.
        text: the name.

    Raises:
        UserError: it can't be imported.
    """
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        where = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            where = (
                f"; {error.name}.py must be in the directory where the command is started, or in "
                f"one of PYTHONPATH"
            )
        raise UserError(f"{field}: can't import {text!r}: {error}{where}") from error
