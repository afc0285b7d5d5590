"""What a good placement is: within memory, equal on all shards, and fast, in this order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from dlrm_jax.embedding.planning.costs import Costs, Load
from dlrm_jax.errors import UserError

# While tables are added, being a part of a limit above it counts as so many times that part of the
# time of a whole plan; memory goes before all.
_IMBALANCE, _OVERFLOW = 10.0, 1000.0
# Within the limits, 1 % more bytes or rows than the mean shard has weigh as 0.5 % of the time.
_UNEVEN = 0.5
# Differences that are rounding alone.
_DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Limits:
    """How unequal shards may be, and how much a device may hold.

    Attributes:
        memory: bytes of tables and optimizer state on a device.
        exchange: bytes exchanged, over those that the mean shard needs.
        reads: distinct rows that the busiest device looks up, over the mean.
        table_bytes: bytes of tables and optimizer state, over those that the mean shard needs.
        copies: these bytes over a device's share if nothing were there twice. A share below
            ``small`` bytes may be there as often as is fast.
        small: bytes.
    """

    memory: float = float("inf")
    exchange: float = 1.15
    reads: float = 1.15
    table_bytes: float = 1.05
    copies: float = 1.25
    small: float = 2**26

    def __post_init__(self):
        if not self.memory > 0:
            raise UserError(f"limits: expected a memory of more than 0 bytes, got {self.memory}")


class Score(NamedTuple):
    """Orders placements: memory first, then the other limits, then time and evenness.

    Attributes:
        overflow: bytes above the memory, in parts of it.
        imbalance: excess over the other limits, each in parts of it, summed up.
        cost: seconds, and a share of them for what the fullest and the busiest shard exceed.
        ties: bytes that the mean shard exchanges, then how uneven shards are.
        seconds: seconds of what is placed.
    """

    overflow: Float64[np.ndarray, "*O"]
    imbalance: Float64[np.ndarray, "*O"]
    cost: Float64[np.ndarray, "*O"]
    ties: Float64[np.ndarray, "*O"]
    seconds: Float64[np.ndarray, "*O"]

    def at(self, index: int) -> Score:
        """The score of one placement."""
        return Score(*(x[index] for x in self))

    def order(self) -> Int[np.ndarray, " O"]:
        """The placements, the best first."""
        return np.lexsort(self[3::-1])

    def energy(self, second: float) -> Float64[np.ndarray, "*O"]:
        """One number for placements that aren't complete, whose limits may be kept later.

        Args:
            second: the time that limits are weighed against.
        """
        weighed = self.cost / second + _IMBALANCE * self.imbalance + _OVERFLOW * self.overflow
        return np.round(weighed, _DIGITS)


def score(
    costs: Costs,
    limits: Limits,
    load: Load,
    missing: Sequence[int] = (),
    reserved: float | Float64[np.ndarray, " K"] = 0.0,
) -> Score:
    """How good placements are.

    Args:
        costs: costs of all tables.
        limits: limits that the placements should keep.
        load: loads of the placements.
        missing: tables that are still to be placed. Shards that are filled beyond what the mean
            one will have in the end are unequal; others may become equal.
        reserved: bag positions of each block that cost nothing more.
    """
    heights = load.rows.max(axis=-1)
    positions = np.maximum(load.positions.max(axis=-1), reserved)
    more_bytes, more_reads, more_seconds = costs.least[list(missing)].sum(axis=0)
    nbytes = load.table_bytes + heights @ costs.row_bytes
    mean_bytes = load.table_bytes + load.rows.mean(axis=-1) @ costs.row_bytes + more_bytes
    exchanged = load.exchanged + positions @ costs.position_bytes
    mean_exchanged = load.exchanged + load.positions.mean(axis=-1) @ costs.position_bytes
    reads, mean_reads = load.reads.max(axis=-1), load.reads.mean(axis=-1) + more_reads

    once = float(max(limits.copies * costs.least[:, 0].sum(), limits.small))
    imbalance = _excess(nbytes, limits.table_bytes * mean_bytes) + _excess(nbytes, once)
    imbalance += _excess(reads, limits.reads * mean_reads)
    if not missing:  # reserved bag positions will be filled by the tables to come
        imbalance += _excess(exchanged, limits.exchange * mean_exchanged)
    mean_seconds = load.row_seconds.mean(axis=-1) + more_seconds
    seconds = np.maximum(load.row_seconds.max(axis=-1), mean_seconds)
    seconds = load.seconds + costs.seconds(heights, positions) + seconds
    return Score(
        np.round(np.maximum(nbytes / limits.memory - 1, 0), _DIGITS),
        np.round(imbalance, _DIGITS),
        seconds * (1 + _UNEVEN * (_excess(nbytes, mean_bytes) + _excess(reads, mean_reads))),
        _digits(mean_exchanged) + 1e-6 * _digits(np.sum(load.row_seconds**2, axis=-1)),
        seconds,
    )


def _excess(
    values: Float64[np.ndarray, "*O"], limit: float | Float64[np.ndarray, "*O"]
) -> Float64[np.ndarray, "*O"]:
    """By how much values are above a limit, in parts of it."""
    limit = np.asarray(limit)
    return np.maximum(np.divide(values, limit, out=np.ones_like(values), where=limit > 0) - 1, 0)


def _digits(values: Float64[np.ndarray, "*O"]) -> Float64[np.ndarray, "*O"]:
    """Values as parts of the largest, without the digits that depend on the order of summation."""
    largest = values.max()
    return np.round(values / largest, 6) if largest else values
