"""Placements that no search needs to try, since another one is as fast and needs no balancing.

On many shards a table may be on any of them, and trying each for a thousand tables takes hours. But
a placement that loads all devices alike leaves nothing to search. Where it is at least as fast as
the others would be if they were balanced, they are dropped.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.plan import Piece
from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.costs import is_shared
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.timing import SlabCosts
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.slab import SlabKey, slab_key
from dlrm_jax.embedding.table import Table

_Kind = tuple[str, int]  # placement and number of shards; such choices cost the same


class _Cost(NamedTuple):
    """The cost of one kind of placement of a table on the mean device.

    Attributes:
        key: slab that the table would lie in.
        size: number of shards that have the table or parts of it.
        slab: costs of this slab, if the table is alone in it.
        rows: number of the table's rows.
        positions: number of its bag positions of each length, [K].
        row_seconds: seconds of reading and writing its rows at random.
        seconds: all seconds but those of a start, without padding.
    """

    key: SlabKey
    size: int
    slab: SlabCosts
    rows: float
    positions: Float64[np.ndarray, " K"]
    row_seconds: float
    seconds: float

    @property
    def nbytes(self) -> float:
        """Bytes of the table and its optimizer state."""
        return self.rows * self.slab.row_bytes

    def padded_seconds(self, padding: Float64[np.ndarray, " K"]) -> float:
        """These seconds with so many times the bag positions of each length."""
        return _seconds(self.slab, self.rows, self.positions * padding, self.row_seconds)


def _seconds(
    slab: SlabCosts, rows: float, positions: Float64[np.ndarray, " K"], row_seconds: float
) -> float:
    return row_seconds + float(slab.seconds(np.array([rows]), positions[None])[0])


def prune(
    tables: Sequence[Table],
    found: Sequence[Sequence[Choice]],
    shards: int,
    optimizer: RowOptimizer | None,
    workload: Workload,
    device: Device,
    limits: Limits,
) -> list[list[Choice]]:
    """The choices for each table without those that aren't worth a search.

    Args:
        tables: all tables.
        found: choices for each table.
        shards: number M of shards.
        optimizer: default optimizer.
        workload: reads of the tables in a step.
        device: model of every device.
        limits: limits of the search; what they leave for copies is shared out evenly.
    """
    slab_costs = functools.partial(SlabCosts, shards=shards, workload=workload, device=device)
    costs = [
        _costs(table, own, optimizer, workload, slab_costs)
        for table, own in zip(tables, found, strict=True)
    ]
    least = sum(min(cost.nbytes for cost in own.values()) for own in costs)
    groups = {"devices": workload.data_groups}
    share = sum(
        min(c.nbytes * groups.get(c.key.split or "", 1) for c in own.values()) for own in costs
    )
    most = min(limits.memory, max(limits.small, limits.copies * share))
    room = max(0.0, most - least) / len(tables)
    while True:
        bags, members = Counter(), Counter()
        for table, own in zip(tables, costs, strict=True):
            for key in {cost.key for cost in own.values()}:
                members[key] += 1
                for length, count in workload.lengths(table.name).items():
                    bags[key, length] += count
        kept = [_worth_a_search(own, bags, members, shards, room) for own in costs]
        if sum(map(len, kept)) == sum(map(len, costs)):
            break
        costs = kept
    return [
        [choice for choice in own if _kind(choice) in kinds]
        for own, kinds in zip(found, costs, strict=True)
    ]


def _kind(choice: Choice) -> _Kind:
    return choice.placement, len(choice.shards)


@functools.cache
def _pieces(placement: str, size: int) -> tuple[Piece, ...]:
    """Pieces of any table that is placed in such a way, which tell its slab."""
    return Choice(placement, range(size)).pieces("")


def _costs(
    table: Table,
    found: Sequence[Choice],
    optimizer: RowOptimizer | None,
    workload: Workload,
    slab_costs: functools.partial[SlabCosts],
) -> dict[_Kind, _Cost]:
    bags, shards = workload.lengths(table.name), slab_costs.keywords["shards"]
    slabs: dict[SlabKey, SlabCosts] = {}
    costs = {}
    for kind, choice in {_kind(choice): choice for choice in found}.items():
        key = slab_key(table, _pieces(*kind), shards, optimizer)
        if key not in slabs:
            distinct = 1.0, 1.0
            if key.split == "devices":
                distinct = tuple(workload.distinct_share(table, count) for count in (shards, 1))
            slabs[key] = slab_costs(key, list(bags), distinct=distinct)
        slab = slabs[key]
        part = 1 / (shards if key.split == "rows" else slab.parts)
        rows = table.rows * part
        used = len(choice.shards) / shards if is_shared(key) else 1.0
        positions = used * np.array(list(bags.values()), float)
        row_seconds = sum(slab.lookups(table)[1:]) * part
        seconds = _seconds(slab, rows, positions, row_seconds)
        costs[kind] = _Cost(key, len(choice.shards), slab, rows, positions, row_seconds, seconds)
    return costs


def _worth_a_search(
    costs: dict[_Kind, _Cost],
    bags: Counter[tuple[SlabKey, int]],
    members: Counter[SlabKey],
    shards: int,
    room: float,
) -> dict[_Kind, _Cost]:
    """The kinds without those that one which loads all devices alike makes needless.

    Args:
        costs: cost of each kind.
        bags: bags of each length that may read each slab.
        members: tables that may be in each slab.
        shards: number of shards.
        room: bytes of copies that don't count.
    """

    def seconds(cost: _Cost) -> float:
        if not is_shared(cost.key):
            return cost.seconds
        # The last bag position isn't full.
        of_all = [bags[cost.key, int(n)] * cost.size / shards for n in cost.slab.lengths]
        return cost.padded_seconds(np.ceil(of_all) / of_all)

    # A collective starts once for all tables of a slab: for one alone, or for a part of them each.
    least, most = {}, {}
    for i, (kind, cost) in enumerate(costs.items()):
        own, start = seconds(cost), cost.slab.start_seconds
        least[kind], most[kind] = (own + start / members[cost.key], i), (own + start, i)
    even = [kind for kind, cost in costs.items() if not is_shared(cost.key)]

    def is_needless(kind: _Kind) -> bool:
        nbytes = costs[kind].nbytes + room
        return any(costs[e].nbytes <= nbytes and most[e] < least[kind] for e in even)

    return {kind: cost for kind, cost in costs.items() if not is_needless(kind)}
