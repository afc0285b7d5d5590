"""The score of a placement: within memory, equal on all shards, and fast, in this order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from dlrm_jax.embedding.planning.costs import Costs, Load
from dlrm_jax.errors import UserError

# Weights of excesses while tables are added: exceeding a limit by some share counts as this many
# times that share of the time of a whole plan. Memory has the largest weight.
_IMBALANCE, _OVERFLOW = 10.0, 1000.0
# Within the limits, 1 % more bytes or rows than the mean shard has weigh as 0.5 % of the time.
_UNEVEN = 0.5
# Smaller differences are rounding errors.
_DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on the memory of a device and on the inequality of shards.

    Attributes:
        memory: bytes of tables and optimizer state on a device.
        exchange: ratio of the bytes exchanged to those that the mean shard needs.
        reads: ratio of the distinct rows that the busiest device looks up to the mean.
        table_bytes: ratio of the bytes of tables and optimizer state to those that the mean shard
            needs.
        copies: ratio of these bytes to a device's share if no table had copies within a group.
        small: bytes that a device may always have, whatever ``copies`` says.
    """

    memory: float = float("inf")
    exchange: float = 1.15
    reads: float = 1.15
    table_bytes: float = 1.05
    copies: float = 1.25
    small: float = 2**26

    def __post_init__(self):
        if not self.memory >= 1:
            raise UserError(f"limits: expected a memory of at least 1 byte, got {self.memory}")


class Score(NamedTuple):
    """An order of placements: by memory, then the other limits, then time and evenness.

    Attributes:
        overflow: excess over the memory, as a share of it.
        imbalance: sum of the excesses over the other limits, each as a share of its limit.
        cost: seconds, and a share of them for the excess of the fullest and the busiest shard.
        ties: bytes that the mean shard exchanges, then the unevenness of shards.
        seconds: seconds of the placed tables.
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
        """The indices of the placements, the best first."""
        return np.lexsort(self[3::-1])

    def energy(self, second: float) -> Float64[np.ndarray, "*O"]:
        """One number for incomplete placements, which may keep the limits later.

        Args:
            second: seconds that limits are weighed against.
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
    """Scores placements.

    Args:
        costs: costs of all tables.
        limits: limits that the placements should keep.
        load: loads of the placements.
        missing: indices of tables that are still to be placed. Only shards filled beyond the final
            mean count as unequal; others may become equal.
        reserved: number of bag positions of each block that cost nothing more.
    """
    heights = load.rows.max(axis=-1)
    positions = np.maximum(load.positions.max(axis=-1), reserved)
    more_bytes, more_reads, more_seconds = costs.least[list(missing)].sum(axis=0)
    nbytes = load.table_bytes + heights @ costs.row_bytes
    mean_bytes = load.table_bytes + load.rows.mean(axis=-1) @ costs.row_bytes + more_bytes
    exchanged = load.exchanged + positions @ costs.position_bytes
    mean_exchanged = load.exchanged + load.positions.mean(axis=-1) @ costs.position_bytes
    reads, mean_reads = load.reads.max(axis=-1), load.reads.mean(axis=-1) + more_reads

    once = float(max(limits.copies * costs.share, limits.small))
    imbalance = _excess(nbytes, limits.table_bytes * mean_bytes) + _excess(nbytes, once)
    imbalance += _excess(reads, limits.reads * mean_reads)
    if not missing:  # later tables will fill reserved bag positions
        imbalance += _excess(exchanged, limits.exchange * mean_exchanged)
    row_seconds = load.row_seconds.sum(axis=-2)
    mean_seconds = row_seconds.mean(axis=-1) + more_seconds
    seconds = np.maximum(row_seconds.max(axis=-1), mean_seconds)
    seconds += load.by_part.sum(axis=-1) + costs.seconds(heights, positions, load.members)
    return Score(
        np.round(np.maximum(nbytes / limits.memory - 1, 0), _DIGITS),
        np.round(imbalance, _DIGITS),
        seconds * (1 + _UNEVEN * (_excess(nbytes, mean_bytes) + _excess(reads, mean_reads))),
        _digits(mean_exchanged) + 1e-6 * _digits(np.sum(row_seconds**2, axis=-1)),
        seconds,
    )


def _excess(
    values: Float64[np.ndarray, "*O"], limit: float | Float64[np.ndarray, "*O"]
) -> Float64[np.ndarray, "*O"]:
    """The excess of values over a limit, as a share of it."""
    limit = np.asarray(limit)
    return np.maximum(np.divide(values, limit, out=np.ones_like(values), where=limit > 0) - 1, 0)


def _digits(values: Float64[np.ndarray, "*O"]) -> Float64[np.ndarray, "*O"]:
    """Values as shares of the largest, without the digits that depend on the order of summation."""
    largest = values.max()
    return np.round(values / largest, 6) if largest else values
