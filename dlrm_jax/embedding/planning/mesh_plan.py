"""A placement of tables on one mesh, with estimates of its bytes and its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dlrm_jax.backend import TPU
from dlrm_jax.embedding.collectives import Collective, collectives
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.plan import Plan
from dlrm_jax.embedding.planning.balance import Balance, balance, seconds_by_resource
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.temporaries import temporaries
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.mesh import DATA, MODEL

STARTS = "starts of collectives"


@dataclasses.dataclass(frozen=True)
class MeshPlan:
    """A mesh of D data-parallel groups of M model shards, and a plan for it.

    Attributes:
        groups: number D of data-parallel groups.
        plan: placement of the tables on M shards.
        balance: bytes and rows of each shard.
        collectives: collectives of the tables in a step.
        temporaries: estimated bytes of a step besides tables and optimizer state, see
            `temporaries.temporaries`.
        seconds: estimated seconds of a step's lookups and updates, by part.
    """

    groups: int
    plan: Plan
    balance: Balance
    collectives: tuple[Collective, ...]
    temporaries: float
    seconds: Mapping[str, float]

    @property
    def mesh(self) -> str:
        """The shape of the mesh, such as ``"16x8"``."""
        return f"{self.groups}x{self.plan.shards}"

    @property
    def received(self) -> int:
        """Bytes of tables that one device receives in a step."""
        return sum(each.nbytes for each in self.collectives)

    @property
    def starts(self) -> int:
        """The number of collectives of tables that a step starts."""
        return sum(each.starts for each in self.collectives)

    @property
    def total_seconds(self) -> float:
        """The estimated seconds of a step's lookups and updates."""
        return sum(self.seconds.values())


def planned_mesh(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    plan: Plan,
    optimizer: RowOptimizer | None,
    workload: Workload,
    device: Device,
) -> MeshPlan:
    """The load and the time of a plan on ``workload.data_groups`` groups."""
    groups = workload.data_groups
    packed_from = TPU.packed_from if device.tiled else None
    layout = make_layout(tables, features, lookups, plan, optimizer, groups, packed_from)
    shape = {DATA: groups, MODEL: plan.shards}
    moved = collectives(
        layout,
        shape,
        workload.batch_size,
        micro_batches=workload.micro_batches,
        all_rows=workload.all_rows,
    )
    seconds = seconds_by_resource(tables, plan, optimizer, workload, device)
    seconds[STARTS] = sum(each.starts for each in moved) * device.latency
    size, ways = workload.batch_size, (workload.all_rows, workload.fused)
    arrays = temporaries(layout, moved, shape, size, device, *ways)
    loads = balance(layout, plan, workload, device)
    return MeshPlan(groups, plan, loads, moved, arrays, seconds)
