"""The search for a plan on one mesh, with memory for temporaries and few starts of collectives."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from dlrm_jax.embedding.plan import Piece, Plan
from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import MeshPlan, planned_mesh
from dlrm_jax.embedding.planning.planner import (
    MemoryExceededError,
    automatic_plan,
    pieces_of_owners,
)
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.table import Feature, Lookup, Table

# Tables may have three quarters of a device's memory, and with the temporaries of their lookups and
# updates nine tenths. The dense model has the rest.
_WITH_TEMPORARIES = 1.2
# Plans are made with less memory for tables until the temporaries fit, too; then with all tables
# placed alike.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class MeshSearch:
    """The two steps of `plan_on_mesh`, with the arguments that are the same for all meshes.

    Attributes:
        described: tables, features and lookups.
        placements: overrides of `automatic_plan`.
        optimizer: default optimizer.
        device: model of every device.
        limits: limits of `automatic_plan`.
    """

    described: tuple[Sequence[Table], Sequence[Feature], Sequence[Lookup]]
    placements: Mapping[str, str]
    optimizer: RowOptimizer | None
    device: Device
    limits: Limits

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
        less = "update touched rows alone" if workload.all_rows else "a smaller batch"
        raise MemoryExceededError(
            f"memory: expected at most {_WITH_TEMPORARIES * memory / 2**30:.3g} GiB for tables and "
            f"the arrays that a step makes of their rows, got about {tables / 2**30:.3g} and "
            f"{arrays / 2**30:.3g} GiB on mesh {found.mesh}; use more devices or {less}",
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
        """The plan, or a faster one with more tables in one placement.

        Collectives start for one table as for all. A search that moves one table at a time doesn't
        find out that no table of a placement may be faster than a few. Fully sharded tables are
        tried, and the placement over all shards that most tables have. Plans of emulated devices
        stay as they are searched, like `automatic_plan`'s.
        """
        if self.device.emulated:
            return found
        limits, searched = self.limits, found
        copies = max(limits.small, limits.copies * searched.balance.device_bytes)
        for placement in self._over_all_shards(searched):
            for kept in ("replicated", None):
                plan = self._alike(searched.plan, placement, kept, workload)
                other = found if plan == searched.plan else self._planned(plan, workload)
                fits = other.balance.device_bytes <= min(limits.memory, copies)
                fits = fits and self._room(other) >= 0
                if fits and other.total_seconds < found.total_seconds:
                    found = other
        return found

    def _over_all_shards(self, found: MeshPlan) -> list[str]:
        """The placements that `with_fewer_collectives` tries for more tables."""
        placements = Counter(
            found.plan.placement(table.name)
            for table in self.described[0]
            if table.name not in self.placements
        )
        tried = [x for x, _ in placements.most_common() if x in ("row_wise", "column_wise")][:1]
        if self._may_shard_fully(found.groups * found.plan.shards):
            tried.insert(0, "fully_sharded")
        return tried

    def _alike(self, plan: Plan, placement: str, kept: str | None, workload: Workload) -> Plan:
        """The plan with the tables in this placement that have no override and aren't ``kept``.

        Columns that the shards don't divide stay where they are, too.
        """
        pieces: list[Piece] = []
        for table in self.described[0]:
            if (
                table.name in self.placements
                or plan.placement(table.name) == kept
                or (placement == "column_wise" and table.dim % plan.shards)
            ):
                pieces += plan.of(table.name)
            elif placement == "fully_sharded":
                pieces += pieces_of_owners(table, plan.shards, workload)
            else:
                pieces += Choice(placement, range(plan.shards)).pieces(table.name)
        return Plan(plan.shards, tuple(pieces))

    def _may_shard_fully(self, devices: int) -> bool:
        """Whether tables without an override may be fully sharded, as in `automatic_plan`."""
        return not self.device.emulated and devices > 1

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
        )
        return self._planned(plan, workload)

    def _planned(self, plan: Plan, workload: Workload) -> MeshPlan:
        return planned_mesh(*self.described, plan, self.optimizer, workload, self.device)
