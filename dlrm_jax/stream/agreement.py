"""What all processes of a run on a stream do next: one small exchange before each step.

Each process reads the stream by itself, and finds a segment when its disk or its broker shows it.
Clocks differ, too. So each says what it has found, and process 0 whose clock counts.
"""

from __future__ import annotations

import dataclasses
import enum

import jax
import numpy as np

from dlrm_jax.errors import UserError
from dlrm_jax.processes import gathered, gathered_texts


class Found(enum.IntEnum):
    """What there is to do next."""

    NOTHING = 0
    """No batch yet."""
    IDLE = 1
    """No batch for so long that the run may end."""
    BATCH = 2
    ERROR = 3
    """The stream can't be read."""


class Due(enum.IntFlag):
    """What is due by a clock."""

    CHECKPOINT = 1
    JOURNAL = 2
    PUBLICATION = 4


@dataclasses.dataclass(frozen=True)
class Own:
    """What a process knows.

    Attributes:
        found: result of its reading.
        signal: number of the signal that it has got; 0 for none.
        due: actions that are due by its clock.
        checksum: checksum of all rows of its batch; 0 without one.
        error: why it can't read the stream; None if it can. Any but a `UserError` is a bug, which
            this process shows with its traceback.
    """

    found: Found
    signal: int
    due: Due
    checksum: int = 0
    error: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """What all processes do.

    Attributes:
        found: result that all have in common: a batch, or idleness, which is the end.
        signal: number of the signal that one of them has got; 0 for none.
        due: actions that are due by the clock of process 0.
        missing: processes that have no batch, where others have one.
    """

    found: Found
    signal: int
    due: Due
    missing: tuple[int, ...]


def agree(own: Own) -> Turn:
    """What all processes do next; they call it together.

    Args:
        own: knowledge of this process.

    Raises:
        UserError: a process can't read the stream, or has found other rows than process 0. All
            raise it.
        Exception: the error of this process.
    """
    values = np.array([own.found, own.signal, own.due, own.checksum], np.int32)
    found, signals, due, checksums = gathered(values).T
    if (found == Found.ERROR).any():
        texts = gathered_texts(_told(own.error) if own.error else "")
        raise own.error or UserError(next(text for text in texts if text))
    is_batch = found == Found.BATCH
    missing = np.flatnonzero(~is_batch) if is_batch.any() else np.zeros(0, np.int32)
    if is_batch.all() and (others := np.flatnonzero(checksums != checksums[0])).size:
        raise UserError(
            f"stream: process {others[0]} has found other rows than process 0 for the next batch; "
            f"all processes must read one stream: see that --stream names the same for each"
        )
    same = Found(int(found[0])) if (found == found[0]).all() else Found.NOTHING
    return Turn(same, int(signals.max()), Due(int(due[0])), tuple(missing.tolist()))


def _told(error: Exception) -> str:
    """What the other processes say of an error."""
    if isinstance(error, UserError):
        return str(error)
    return f"stream: process {jax.process_index()} can't read on, and shows where: {error!r}"
