"""The mesh for a number of devices, chosen together with the placement of the tables on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlrm_jax.embedding.planning.devices import DEVICES, Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import MeshPlan
from dlrm_jax.embedding.planning.mesh_search import MeshSearch
from dlrm_jax.embedding.planning.planner import MemoryExceededError
from dlrm_jax.embedding.planning.workload import Workload, bags_of
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError

# Meshes whose plans are improved: those that are likely to be among the fastest three.
_BEST = 4


def plan_on_mesh(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    shards: int,
    placements: Mapping[str, str] | None = None,
    *,
    optimizer: RowOptimizer | None,
    workload: Workload,
    device: Device,
    limits: Limits,
) -> MeshPlan:
    """An automatic plan that leaves memory for the temporaries of a step.

    Args:
        tables: all tables.
        features: features of the lookups.
        lookups: lookups of the tables.
        shards: number M of model shards.
        placements: overrides of `automatic_plan`.
        optimizer: default optimizer.
        workload: reads of the tables in a step, with the number D of groups.
        device: model of every device.
        limits: limits of `automatic_plan`. Tables and temporaries together may have a fifth more
            than ``memory``, which is for tables.

    Raises:
        UserError: as `automatic_plan`, or no plan that was tried leaves memory for the temporaries.
    """
    described = tables, features, lookups
    search = MeshSearch(described, placements or {}, optimizer, device, limits)
    return search.with_fewer_collectives(search.within_memory(shards, workload), workload)


def plan_meshes(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    devices: int,
    placements: Mapping[str, str] | None = None,
    *,
    optimizer: RowOptimizer | None = None,
    batch_size: int = 65_536,
    micro_batches: int = 1,
    zipf_exponent: float = 1.05,
    all_rows: bool = False,
    fused: bool = True,
    device: Device = DEVICES["h100"],
    limits: Limits | None = None,
) -> list[MeshPlan]:
    """The plans for all meshes of so many devices that have the memory, the fastest first.

    Of equally fast ones, those come first whose groups are within hosts, then those of more shards.

    Args:
        tables: all tables.
        features: features of the lookups.
        lookups: lookups of the tables.
        devices: number of devices, D·M of each mesh.
        placements: overrides of `automatic_plan` that name no shards.
        optimizer: default optimizer.
        batch_size: samples of one step, over all devices.
        micro_batches: number of equal parts of the batch that are looked up one after the other.
        zipf_exponent: Zipf exponent of the ids of every table.
        all_rows: whether an update changes all rows, see `Workload`.
        fused: whether kernels of accelerators update rows, see `Workload`.
        device: model of every device.
        limits: limits of `automatic_plan`.

    Raises:
        UserError: the tables don't fit into the memory of any of the meshes, an override names
            shards or no placement, or the devices don't divide the batch or its parts.
    """

    def workload(shards: int) -> Workload:
        bags = bags_of(features, lookups)
        groups = devices // shards
        return Workload(batch_size, groups, zipf_exponent, bags, micro_batches, all_rows, fused)

    if devices < 1 or batch_size // workload(devices).micro_batches % devices:
        which = "batch" if micro_batches == 1 else "micro-batch"
        raise UserError(
            f"devices: expected a number that divides the {which} of "
            f"{batch_size // micro_batches} samples, got {devices}"
        )
    for table, text in (placements or {}).items():
        if ":" in text:
            raise UserError(
                f"placements: table {table}: expected a placement without shards, whose number is "
                f"searched, got {text!r}; give the mesh, or leave {text[text.index(':') :]} out"
            )

    described = tables, features, lookups
    limits = limits or Limits()
    search = MeshSearch(described, placements or {}, optimizer, device, limits)
    found, refused = [], []
    for shards in (n for n in range(1, devices + 1) if devices % n == 0):
        if any(
            table.dim % shards and search.placements.get(table.name) == "column_wise"
            for table in tables
        ):
            continue
        try:
            found.append(search.within_memory(shards, workload(shards)))
        except MemoryExceededError as error:
            refused.append(error)
    if not found:
        raise min(refused, key=lambda error: error.needed)

    def order(each: MeshPlan) -> tuple[float, bool, int]:
        shards = each.plan.shards
        return round(each.total_seconds, 9), shards > device.devices_per_host, -shards

    found.sort(key=order)
    best = [
        search.with_fewer_collectives(each, workload(each.plan.shards)) for each in found[:_BEST]
    ]
    return sorted(best + found[_BEST:], key=order)
