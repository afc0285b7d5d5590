"""The balance of a plan: bytes and rows of each shard, and the parts of a step's time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.plan import PLACEMENTS, Plan
from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.program import PARTS, XLA, Part, Program
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optimizer import RowOptimizer, slot_bytes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.table import Table


@dataclasses.dataclass(frozen=True)
class Balance:
    """Bytes and rows of each of M shards.

    Attributes:
        by_placement: bytes of tables and optimizer state without padding, by the placement of the
            tables.
        table_bytes: bytes of tables without padding.
        padding: bytes of rows that make shards equally long, and of numbers that fill rows.
        filling: the latter of them, in rows that tables have: those of packed lines, and of tiles.
        reads: distinct rows that a step is expected to look up, in each micro-batch anew.
    """

    by_placement: Mapping[str, Float64[np.ndarray, " M"]]
    table_bytes: Float64[np.ndarray, " M"]
    padding: Float64[np.ndarray, " M"]
    filling: Float64[np.ndarray, " M"]
    reads: Float64[np.ndarray, " M"]

    @property
    def needed(self) -> Float64[np.ndarray, " M"]:
        """Bytes of tables and optimizer state without padding."""
        return np.sum(list(self.by_placement.values()), axis=0)

    @property
    def device_bytes(self) -> float:
        """Bytes of tables and optimizer state with padding, the same on every device."""
        return float(self.needed[0] + self.padding[0])


def balance(layout: Layout, plan: Plan, workload: Workload, device: Device) -> Balance:
    """The exact bytes of each shard, and the expected number of rows that it reads.

    Args:
        layout: layout of the plan.
        plan: plan of all tables.
        workload: reads of the tables in a step.
        device: model of every device.
    """
    by_placement = {placement: np.zeros(plan.shards) for placement in PLACEMENTS}
    table_bytes, padding, filling, reads = (np.zeros(plan.shards) for _ in range(4))
    group = workload.batch_size / workload.data_groups
    for slab in layout.slabs:
        table_row, state_row = row_bytes(slab)
        stored_row = sum(row_bytes(slab, device))
        used = np.zeros(plan.shards)
        for piece, _ in slab.pieces:
            table = slab.tables[piece.table]
            rows = piece.rows(table.rows)
            on = slice(None) if piece.shard is None else piece.shard
            samples = group / plan.shards if piece.shard is None else group
            if slab.fully_sharded:
                rows, samples = rows / slab.shards, workload.batch_size
            used[on] += rows
            by_placement[plan.placement(table.name)][on] += rows * (table_row + state_row)
            reads[on] += workload.rows_read(table, samples) * rows / table.rows
        table_bytes += used * table_row
        filled = used * (stored_row - table_row - state_row)
        filling += filled
        padding += filled + (slab.rows - used) * stored_row
    return Balance(by_placement, table_bytes, padding, filling, reads)


def row_bytes(slab: Slab, device: Device | None = None) -> tuple[int, int]:
    """Bytes of one row of a table and of its optimizer state, as one shard has it.

    Args:
        slab: slab of the row.
        device: device whose memory may need padding; None for the bytes without it.
    """

    def nbytes(width: int, itemsize: int) -> int:
        return device.stored_bytes(width, itemsize) if device and width else width * itemsize

    state = 0
    if slab.optimizer:
        itemsize = slab.vector_dtype.itemsize
        slots = slot_bytes(slab.optimizer, slab.width, slab.dtype).values()
        state = sum(nbytes(slot // itemsize, itemsize) for slot in slots)
    return nbytes(slab.width, slab.dtype.itemsize), state


LINKS, NETWORK = "links in a host", "network between hosts"
PASSES, ROWS = "passes through memory", "rows at random"
_RESOURCES = {LINKS: "links", NETWORK: "network", PASSES: "memory", ROWS: "rows"}


def seconds_by_resource(
    tables: Sequence[Table],
    plan: Plan,
    optimizer: RowOptimizer | None,
    workload: Workload,
    device: Device,
) -> dict[str, float]:
    """The planner's estimate of a step's lookups and updates, by what they take their time from.

    Args:
        tables: all tables.
        plan: plan of these tables.
        optimizer: default optimizer.
        workload: reads of the tables in a step.
        device: model of every device.
    """
    found = seconds_by_part(tables, plan, optimizer, workload, device)
    return {
        name: sum(seconds for part, seconds in found.items() if part.resource == resource)
        for name, resource in _RESOURCES.items()
    }


def seconds_by_part(
    tables: Sequence[Table],
    plan: Plan,
    optimizer: RowOptimizer | None,
    workload: Workload,
    device: Device,
    program: Program = XLA,
) -> dict[Part, float]:
    """The planner's estimate of a step's lookups and updates, in seconds by part.

    Args:
        tables: all tables.
        plan: plan of these tables.
        optimizer: default optimizer.
        workload: reads of the tables in a step.
        device: model of every device.
        program: passes through memory.
    """
    choices = [[Choice.of(plan, table.name)] for table in tables]
    costs = Costs(tables, choices, plan.shards, optimizer, workload, device, program)
    found = costs.seconds_by_part([0] * len(tables))
    return {part: found[part] for part in PARTS}
