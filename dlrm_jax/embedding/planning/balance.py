"""What a plan comes to: what each shard holds and reads, and where the time of a step goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.layout import Layout, Slab
from dlrm_jax.embedding.optimizer import RowOptimizer, slot_bytes
from dlrm_jax.embedding.plan import PLACEMENTS, Plan
from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.search import Search
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.table import Table


@dataclasses.dataclass(frozen=True)
class Balance:
    """Of each of M shards, bytes and rows.

    Attributes:
        held: by placement, bytes of weights and optimizer state of the tables placed so.
        weights: bytes of weights.
        padding: bytes of rows that only make shards equally long.
        reads: distinct rows that a step is expected to look up.
    """

    held: Mapping[str, Float64[np.ndarray, " M"]]
    weights: Float64[np.ndarray, " M"]
    padding: Float64[np.ndarray, " M"]
    reads: Float64[np.ndarray, " M"]

    @property
    def needed(self) -> Float64[np.ndarray, " M"]:
        """Bytes of weights and optimizer state without padding."""
        return np.sum(list(self.held.values()), axis=0)

    @property
    def device_bytes(self) -> float:
        """Bytes of weights and optimizer state with padding, the same on every device."""
        return float(self.needed[0] + self.padding[0])


def balance(layout: Layout, plan: Plan, workload: Workload) -> Balance:
    """What each shard holds, to the byte, and is expected to read.

    Args:
        layout: of the plan.
        plan: of all tables.
        workload: what is asked of them.
    """
    held = {placement: np.zeros(plan.shards) for placement in PLACEMENTS}
    weights, padding, reads = (np.zeros(plan.shards) for _ in range(3))
    group = workload.batch_size / workload.data_groups
    for slab in layout.slabs:
        weight, state = row_bytes(slab)
        used = np.zeros(plan.shards)
        for piece, _ in slab.pieces:
            table = slab.tables[piece.table]
            rows = piece.rows(table.rows)
            on = slice(None) if piece.shard is None else piece.shard
            samples = group / plan.shards if piece.shard is None else group
            used[on] += rows
            held[plan.placement(table.name)][on] += rows * (weight + state)
            reads[on] += workload.distinct_rows(table, samples) * rows / table.rows
        weights += used * weight
        padding += (slab.rows - used) * (weight + state)
    return Balance(held, weights, padding, reads)


def row_bytes(slab: Slab) -> tuple[int, int]:
    """Bytes of one row's weights and of its optimizer state on one device."""
    state = 0
    if slab.optimizer:
        state = sum(slot_bytes(slab.optimizer, slab.width, slab.dtype).values())
    return slab.width * slab.dtype.itemsize, state


LINKS, PASSES, ROWS = "links between devices", "passes through memory", "rows at random"


def seconds_by_part(
    tables: Sequence[Table],
    plan: Plan,
    optimizer: RowOptimizer | None,
    workload: Workload,
    device: Device,
) -> dict[str, float]:
    """The estimated seconds of a step's lookups and updates, as the planner sees them.

    Args:
        tables: all tables.
        plan: of these.
        optimizer: of tables that have none of their own.
        workload: what is asked of them.
        device: that they lie on.
    """
    own = {
        LINKS: ("link_bandwidth", "network_bandwidth"),
        PASSES: ("memory_bandwidth",),
        ROWS: ("row_bandwidth",),
    }
    choices = [[Choice.of(plan, table.name)] for table in tables]
    seconds = {}
    for part in own:
        # As if all else took no time.
        others = [name for other in own if other != part for name in own[other]]
        alone = dataclasses.replace(device, **dict.fromkeys(others, float("inf")))
        costs = Costs(tables, choices, plan.shards, optimizer, workload, alone)
        seconds[part] = Search(costs, Limits()).key([0] * len(tables)).seconds
    return seconds
