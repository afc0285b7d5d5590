"""What a good placement is: within memory, equal on all shards, and fast, in this order."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.planning.costs import EVERYWHERE
from dlrm_jax.errors import UserError

_HELD, _EXCHANGED, _SECONDS, _READS, _BUSY = range(len(EVERYWHERE))
# Differences that are rounding alone.
_DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Limits:
    """How unequal shards may be, and what a device may hold.

    Attributes:
        memory: bytes of tables and optimizer state on a device.
        exchange: bytes exchanged over those that the mean shard needs.
        reads: distinct rows that the busiest device looks up over the mean.
        held: bytes held over those that the mean shard needs.
        copies: bytes held over a device's share if nothing were held twice. A share below
            ``small`` bytes may be held as often as is fast.
        small: bytes.
    """

    memory: float = float("inf")
    exchange: float = 1.15
    reads: float = 1.15
    held: float = 1.05
    copies: float = 1.25
    small: float = 2**26

    def __post_init__(self):
        if not self.memory > 0:
            raise UserError(f"limits: expected a memory of more than 0 bytes, got {self.memory}")


class Key(NamedTuple):
    """Orders placements: memory first, then the limits, then time.

    Attributes:
        over: by how much more than the memory is held, in parts of it.
        unequal: the same of the other limits, summed up.
        seconds: of what is placed.
    """

    over: float
    unequal: float
    seconds: float


class Outcomes(NamedTuple):
    """Of some placements, what `Key` holds; and by what equally good ones are told apart."""

    over: Float64[np.ndarray, " O"]
    unequal: Float64[np.ndarray, " O"]
    seconds: Float64[np.ndarray, " O"]
    ties: Float64[np.ndarray, " O"]


def judged(
    limits: Limits,
    share: float,
    slabs: Float64[np.ndarray, "O 5"],
    everywhere: Float64[np.ndarray, "O 5"],
    reads: Float64[np.ndarray, "O M"],
    busy: Float64[np.ndarray, "O M"],
    expected: Float64[np.ndarray, " 3"],
) -> Outcomes:
    """How good placements are.

    Args:
        limits: that they should keep.
        share: a device's part of all bytes, held once.
        slabs: of all shared slabs: bytes held and needed, bytes exchanged and needed, seconds.
        everywhere: what is alike on all devices.
        reads: of shards, the rest.
        busy: of shards, the rest.
        expected: what tables that are out will bring to the mean shard. Shards that are filled
            beyond what it will have in the end are unequal; others may become equal.
    """
    held, needed, exchanged, used, seconds = slabs.T
    held, needed = held + everywhere[:, _HELD], needed + everywhere[:, _HELD]
    exchanged, used = (x + everywhere[:, _EXCHANGED] for x in (exchanged, used))
    more_bytes, more_reads, more_busy = expected
    mean_busy = busy.mean(axis=1) + more_busy
    most = reads.max(axis=1) + everywhere[:, _READS]
    mean = reads.mean(axis=1) + everywhere[:, _READS] + more_reads
    unequal = _excess(held, limits.held * (needed + more_bytes))
    unequal += _excess(most, limits.reads * mean)
    unequal += _excess(held, np.full_like(held, max(limits.copies * share, limits.small)))
    if not more_bytes:  # the slots that are bought will be filled by the tables to come
        unequal += _excess(exchanged, limits.exchange * used)
    return Outcomes(
        np.round(np.maximum(held / limits.memory - 1, 0), _DIGITS),
        np.round(unequal, _DIGITS),
        seconds
        + everywhere[:, _SECONDS]
        + everywhere[:, _BUSY]
        + np.maximum(busy.max(axis=1), mean_busy),
        # Of equally good ones the one that takes least room, then the emptiest.
        _digits(used) + 1e-6 * _digits(np.sum(busy**2, axis=1)),
    )


def _excess(
    values: Float64[np.ndarray, " O"], limit: Float64[np.ndarray, " O"]
) -> Float64[np.ndarray, " O"]:
    """By how much values are above a limit, in parts of it."""
    return np.maximum(np.divide(values, limit, out=np.ones_like(values), where=limit > 0) - 1, 0)


def _digits(values: Float64[np.ndarray, " O"]) -> Float64[np.ndarray, " O"]:
    """Values as parts of the largest, without the digits that depend on the order of summation."""
    largest = values.max()
    return np.round(values / largest, 6) if largest else values
