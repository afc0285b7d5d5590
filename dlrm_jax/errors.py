"""The exceptions that a person sees as a message instead of a traceback."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any


def shortened(text: str, most: int = 300) -> str:
    """A text that was read, for a message: its beginning, if it is long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class UserError(ValueError):
    """Input that cannot be used as given.

    The message says what was expected, what came (name, value, file and line)
    and what to do. Programs print it to stderr and exit with code 2.
    """


_SHOWN = 100  # characters


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, and cut if that is long."""
    try:
        return cut(repr(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"{type(value).__name__} that is too long to be written"


def cut(text: str, most: int = _SHOWN) -> str:
    """A text of at most so many characters, and dots for the others."""
    return text if len(text) <= most else f"{text[:most]}…"


class InUseError(UserError):
    """A workdir, or another directory, that another run has locked."""


class DamagedCheckpointError(UserError):
    """A checkpoint that lacks files or parts of them; an earlier one may be whole.

    Args:
        checkpoint: directory of the checkpoint.
        reason: damage that was found.
    """

    def __init__(self, checkpoint: str, reason: str):
        super().__init__(checkpoint, reason)
        self.reason = reason

    def __str__(self) -> str:
        checkpoint, reason = self.args
        return f"checkpoint {checkpoint} is damaged: {reason}; give another one, or a whole copy"


class OtherShapeError(UserError):
    """An array of a checkpoint that isn't there, or has another shape than the model's."""


class DamagedArtifactError(UserError):
    """An artifact with a file that isn't as it was written.

    Args:
        artifact: directory of the artifact.
        file: name of the file in it.
        reason: difference that was found.
    """

    def __init__(self, artifact: str, file: str, reason: str):
        super().__init__(artifact, file, reason)
        self.file = file

    def __str__(self) -> str:
        artifact, file, reason = self.args
        file, reason = shortened(file, 100), shortened(reason, 500)
        return (
            f"artifact {artifact} is damaged: {file}: {reason}; copy it again, or export it again"
        )


class DamagedDeltaError(DamagedArtifactError):
    """A delta that isn't as it was written, or doesn't follow the one before.

    Args:
        delta: directory of the delta.
        file: name of the file in it.
        reason: difference that was found.
    """

    def __str__(self) -> str:
        delta, file, reason = self.args
        return (
            f"delta {delta} is damaged: {shortened(file, 100)}: {shortened(reason, 500)}; a new "
            f"base helps, which train --publish writes when it is started again; or remove "
            f"{PurePath(delta).parent} and start the server again, which serves the older base"
        )


class CopiesDifferError(UserError):
    """Copies of an array differ between devices: no setting is the cause, but the machine."""
