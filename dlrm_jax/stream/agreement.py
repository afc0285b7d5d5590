"""What all processes of a run on a stream do next: one small exchange before each step.

Each process reads the stream by itself, and finds a segment when its disk or its broker shows it.
Clocks differ, too. So each says what it has found, and process 0 whose clock counts. The hosts
exchange this among themselves: devices would do so after the steps that they compute, for which the
next step would wait.
"""

from __future__ import annotations

import dataclasses
import enum
import struct

import numpy as np

from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import HostExchange
from dlrm_jax.processes import encoded

_MESSAGE = struct.Struct("<4q")  # before the text of an error


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


def agree(own: Own, exchange: HostExchange | None = None) -> Turn:
    """What all processes do next; they call it together.

    Args:
        own: knowledge of this process.
        exchange: connections to the other processes; None where there are none.

    Raises:
        UserError: a process can't read the stream, or has found other rows than process 0. All
            raise it.
        LostProcessError: another process has ended.
        Exception: the error of this process.
    """
    index = exchange.index if exchange else 0
    message = _MESSAGE.pack(own.found, own.signal, own.due, own.checksum)
    message += encoded(_told(own.error, index))
    messages = exchange.all_to_all([message] * exchange.count) if exchange else [message]
    values = np.array([_MESSAGE.unpack_from(x) for x in messages])
    found, signals, due, checksums = values.T
    if (found == Found.ERROR).any():
        texts = (x[_MESSAGE.size :].decode() for x in messages)
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


def _told(error: Exception | None, index: int) -> str:
    """What a process tells the others of its error."""
    if error is None or isinstance(error, UserError):
        return str(error or "")
    return f"stream: process {index} can't read on, and shows where: {error!r}"
