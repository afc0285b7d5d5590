"""Automatic plans: the planner enumerates placements, estimates their costs, and chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import optax

from dlrm_jax.embedding.plan import Piece, Plan, fully_sharded
from dlrm_jax.embedding.planning.choices import choices
from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.devices import DEVICES, Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.pruning import prune
from dlrm_jax.embedding.planning.search import Search
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError

# Choices for all tables that are pruned on emulated devices, too.
_MANY = 2000


class MemoryExceededError(UserError):
    """The error of tables that don't fit into the memory of devices.

    Attributes:
        needed: bytes that each device needs.
    """

    def __init__(self, message: str, needed: float):
        super().__init__(message)
        self.needed = needed


def automatic_plan(
    tables: Sequence[Table],
    shards: int,
    placements: Mapping[str, str] | None = None,
    *,
    optimizer: RowOptimizer | optax.GradientTransformation | None = None,
    workload: Workload | None = None,
    device: Device = DEVICES["h100"],
    limits: Limits | None = None,
) -> Plan:
    """A plan that fits into memory, loads all shards alike, and is fast, in this order.

    A table may be whole on all shards or on one, have its rows dealt out over aligned runs of
    shards (2, 4, … or all), or its columns split over all, or its rows dealt out over all devices;
    large tables are on all shards. On emulated devices, tables without an override are never fully
    sharded: bytes that aren't sent save nothing there, and sorting ids takes time. The same
    arguments give the same plan. The defaults suit large batches of single ids; the plan is valid
    for any batch.

    Args:
        tables: all tables.
        shards: size of the mesh's model axis.
        placements: overrides by table name: ``"replicated"``, ``"column_wise"``, ``"row_wise"``,
            ``"fully_sharded"``, ``"table_wise"`` on a shard of the planner's choice or, with
            shards, ``"row_wise:0-3"``, ``"table_wise:2"``.
        optimizer: default optimizer.
        workload: reads of the tables in a step; None for the defaults of `Workload`.
        device: model of every device.
        limits: limits to keep; None for the defaults of `Limits`, without a limit on memory.

    Raises:
        UserError: there are no tables or shards, an override names no table or no placement that
            its table can have, or the tables don't fit into ``limits.memory``.
    """
    if not tables or shards < 1:
        raise UserError(
            f"expected at least one table and one shard to plan for, got {len(tables)} and {shards}"
        )
    if optimizer is not None:
        optimizer = as_row_optimizer(optimizer, "optimizer")
    workload = workload or Workload()
    over_all = not device.emulated and shards * workload.data_groups > 1
    limits = limits or Limits()
    found = choices(tables, shards, placements or {}, over_all)
    # Steps on emulated devices were measured with plans of a full search, which few choices allow.
    if not device.emulated or sum(map(len, found)) > _MANY:
        found = prune(tables, found, shards, optimizer, workload, device, limits)
    costs = Costs(tables, found, shards, optimizer, workload, device)
    search = Search(costs, limits)
    chosen = search.best()
    overflow = float(search.score(chosen).overflow)
    if overflow > 0:
        devices = shards * workload.data_groups
        raise _too_large(tables, costs, devices, limits.memory, (1 + overflow) * limits.memory)
    placed = zip(
        tables, (own[choice] for own, choice in zip(found, chosen, strict=True)), strict=True
    )
    plan = Plan(
        shards,
        tuple(
            piece
            for table, choice in placed
            for piece in (
                pieces_of_owners(table, shards, workload)
                if choice.placement == "fully_sharded"
                else choice.pieces(table.name)
            )
        ),
    )
    plan.check(tables)  # an override may split columns that the shards don't divide
    return plan


def pieces_of_owners(table: Table, shards: int, workload: Workload) -> tuple[Piece, ...]:
    """The piece of a fully sharded table, with the shares of different ids that are expected."""
    distinct = workload.distinct_share(table, shards), workload.distinct_share(table, 1)
    return fully_sharded(table.name, *distinct)


def _too_large(
    tables: Sequence[Table], costs: Costs, devices: int, memory: float, found: float
) -> MemoryExceededError:
    """An error with the memory needed, the memory there is, and the largest table."""
    least = costs.least[:, 0]
    binding = int(np.argmax(least))
    table = tables[binding]
    needed, how = sum(least), "at least"
    if needed <= memory:
        needed, how = found, "in the best plan found"
    return MemoryExceededError(
        f"memory: tables and their optimizer state need {how} {needed / 2**30:.3g} GiB on each of "
        f"{devices} devices, a device has {memory / 2**30:.3g} GiB for them. Most of it, "
        f"{least[binding] / 2**30:.3g} GiB, is for table {table.name} ({table.rows:,} x "
        f"{table.dim}). Use more shards or devices, a narrower type or an optimizer with less "
        f"state, or place fewer tables yourself",
        needed,
    )
