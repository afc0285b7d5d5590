"""The mesh for a number of devices, chosen together with the placement of the tables on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dlrm_jax.embedding.plan import Plan
from dlrm_jax.embedding.planning.devices import DEVICES, Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import MeshPlan, planned_mesh
from dlrm_jax.embedding.planning.planner import (
    MemoryExceededError,
    automatic_plan,
    pieces_of_owners,
)
from dlrm_jax.embedding.planning.workload import Workload, bags_of
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError

# Tables may have three quarters of a device's memory, and with the temporaries of their lookups and
# updates nine tenths. The dense model has the rest.
_WITH_TEMPORARIES = 1.2
# Plans are made with less memory for tables until the temporaries fit, too; then with all tables
# placed alike.
_ATTEMPTS = 3
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
    over_all: bool = True,
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
        over_all: whether tables may be fully sharded, see `automatic_plan`.

    Raises:
        UserError: as `automatic_plan`, or no plan that was tried leaves memory for the temporaries.
    """
    described = tables, features, lookups
    search = _Search(described, placements or {}, optimizer, device, limits, over_all)
    return search.with_fewer_collectives(search.within_memory(shards, workload), workload)


@dataclasses.dataclass(frozen=True)
class _Search:
    """The arguments of `plan_on_mesh` that are the same for all meshes, and its two steps."""

    described: tuple[Sequence[Table], Sequence[Feature], Sequence[Lookup]]
    placements: Mapping[str, str]
    optimizer: RowOptimizer | None
    device: Device
    limits: Limits
    over_all: bool

    def within_memory(self, shards: int, workload: Workload) -> MeshPlan:
        """An automatic plan that leaves memory for temporaries."""
        memory = room = self.limits.memory
        tried: list[MeshPlan] = []
        for _ in range(_ATTEMPTS):
            try:
                found = self._automatic(shards, workload, self.placements, room)
            except MemoryExceededError:
                if not tried:
                    raise
                break  # that error counts no temporaries; the one below does
            if self._room(found) >= 0:
                return found
            tried.append(found)
            room = _WITH_TEMPORARIES * memory - found.temporaries
            if room <= 0:
                break
        uniform = self._uniform(shards, workload)
        fitting = [each for each in uniform if self._room(each) >= 0]
        if fitting:
            return min(fitting, key=lambda each: each.total_seconds)
        found = max(tried + uniform, key=self._room)
        tables, arrays = found.balance.device_bytes, found.temporaries
        raise MemoryExceededError(
            f"memory: expected at most {_WITH_TEMPORARIES * memory / 2**30:.3g} GiB for tables and "
            f"the arrays that a step makes of their rows, got about {tables / 2**30:.3g} and "
            f"{arrays / 2**30:.3g} GiB on mesh {found.mesh}; use more devices or a smaller batch",
            tables + arrays,
        )

    def _uniform(self, shards: int, workload: Workload) -> list[MeshPlan]:
        """Plans that place all tables without an override alike, as far as the tables fit.

        With less memory for tables, temporaries get smaller by chance only: a table may move to a
        placement that makes more of them.
        """
        placements = ["column_wise", "row_wise"] if shards > 1 else []
        if self._may_shard_fully(shards * workload.data_groups):
            placements.insert(0, "fully_sharded")
        found = []
        for placement in placements:
            alike = {
                table.name: placement
                for table in self.described[0]
                if table.name not in self.placements
                and (placement != "column_wise" or table.dim % shards == 0)
            }
            if not alike:
                continue
            try:
                asked = {**self.placements, **alike}
                found.append(self._automatic(shards, workload, asked, self.limits.memory))
            except MemoryExceededError:
                continue  # the tables alone don't fit in this placement; another may
        return found

    def with_fewer_collectives(self, found: MeshPlan, workload: Workload) -> MeshPlan:
        """The plan, or a faster one with more fully sharded tables.

        Collectives start for one table as for all. A search that moves one table at a time doesn't
        find out that no table of a placement may be faster than a few.
        """
        if not self._may_shard_fully(found.groups * found.plan.shards):
            return found
        for kept in ("replicated", None):
            pieces = [
                piece
                for table in self.described[0]
                for piece in (
                    found.plan.of(table.name)
                    if table.name in self.placements or found.plan.placement(table.name) == kept
                    else pieces_of_owners(table, found.plan.shards, workload)
                )
            ]
            plan = Plan(found.plan.shards, tuple(pieces))
            other = found if plan == found.plan else self._planned(plan, workload)
            if other.total_seconds < found.total_seconds and self._room(other) >= 0:
                found = other
        return found

    def _may_shard_fully(self, devices: int) -> bool:
        """Whether tables without an override may be fully sharded, as in `automatic_plan`."""
        return self.over_all and not self.device.emulated and devices > 1

    def _room(self, found: MeshPlan) -> float:
        """Bytes that tables and temporaries leave."""
        used = found.balance.device_bytes + found.temporaries
        return _WITH_TEMPORARIES * self.limits.memory - used

    def _automatic(
        self, shards: int, workload: Workload, placements: Mapping[str, str], memory: float
    ) -> MeshPlan:
        """The automatic plan with these overrides and so many bytes for tables."""
        plan = automatic_plan(
            self.described[0],
            shards,
            placements,
            optimizer=self.optimizer,
            workload=workload,
            device=self.device,
            limits=dataclasses.replace(self.limits, memory=memory),
            over_all=self.over_all,
        )
        return self._planned(plan, workload)

    def _planned(self, plan: Plan, workload: Workload) -> MeshPlan:
        return planned_mesh(*self.described, plan, self.optimizer, workload, self.device)


def plan_meshes(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    devices: int,
    placements: Mapping[str, str] | None = None,
    *,
    optimizer: RowOptimizer | None = None,
    batch_size: int = 65_536,
    zipf_exponent: float = 1.05,
    device: Device = DEVICES["h100"],
    limits: Limits | None = None,
    over_all: bool = True,
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
        zipf_exponent: Zipf exponent of the ids of every table.
        device: model of every device.
        limits: limits of `automatic_plan`.
        over_all: whether tables may be fully sharded, see `automatic_plan`.

    Raises:
        UserError: the tables don't fit into the memory of any of the meshes, an override names
            shards or no placement, or the devices don't divide the batch.
    """
    if devices < 1 or batch_size % devices:
        raise UserError(
            f"devices: expected a number that divides the batch of {batch_size} samples, got "
            f"{devices}"
        )
    for table, text in (placements or {}).items():
        if ":" in text:
            raise UserError(
                f"placements: table {table}: expected a placement without shards, whose number is "
                f"searched, got {text!r}; give the mesh, or leave {text[text.index(':') :]} out"
            )

    def workload(shards: int) -> Workload:
        return Workload(batch_size, devices // shards, zipf_exponent, bags_of(features, lookups))

    described = tables, features, lookups
    limits = limits or Limits()
    search = _Search(described, placements or {}, optimizer, device, limits, over_all)
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
