"""Functions and classes of a user's own that a setting names, as MODULE:NAME."""

from __future__ import annotations

import importlib
import traceback
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
        UserError: it can't be imported, whatever the module does instead.
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
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        kind, frame = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
        # The text of a SyntaxError names its line itself.
        place = "" if isinstance(error, SyntaxError) else f" ({frame.filename}:{frame.lineno})"
        raise UserError(f"{field}: can't import {text!r}: {kind}: {error}{place}") from error
