"""The costs of each placement of each table, in bytes, rows and seconds of a device.

Shards differ in their *shared* slabs: those of tables that are on one or some shards. Such a slab,
and the blocks that read it, are as long on every shard as on the fullest one. The costs of other
slabs are equal on all shards, and a plain sum.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.program import COMPARED, ROW_PARTS, STARTS, XLA, Part, Program
from dlrm_jax.embedding.planning.timing import SlabCosts
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.slab import SlabKey, slab_key
from dlrm_jax.embedding.table import Table


@dataclasses.dataclass(frozen=True)
class Load:
    """The load of M shards from a placement of some tables, or from each of O placements.

    Loads can be added, subtracted and indexed by placement.

    Attributes:
        rows: rows of each of the S shared slabs, [*O, S, M].
        positions: bag positions of each of the shared slabs' K blocks, [*O, K, M].
        reads: distinct rows that are looked up, [*O, M].
        row_seconds: seconds of rows at random, of `ROW_PARTS`: of reading them for lookups, and of
            updating them, [*O, 2, M].
        table_bytes: bytes of tables and optimizer state in other slabs, on every shard, [*O].
        exchanged: bytes of the exchange for other slabs, [*O].
        by_part: seconds of other slabs, without ``row_seconds``, by part of `COMPARED`, [*O, P].
        members: number of tables in each of the C slabs of `Costs.starts`, [*O, C].
    """

    rows: Float64[np.ndarray, "*O S M"]
    positions: Float64[np.ndarray, "*O K M"]
    reads: Float64[np.ndarray, "*O M"]
    row_seconds: Float64[np.ndarray, "*O 2 M"]
    table_bytes: Float64[np.ndarray, "*O"]
    exchanged: Float64[np.ndarray, "*O"]
    by_part: Float64[np.ndarray, "*O P"]
    members: Float64[np.ndarray, "*O C"]

    def __add__(self, other: Load) -> Load:
        return self._map(np.add, other)

    def __sub__(self, other: Load) -> Load:
        return self._map(np.subtract, other)

    def __getitem__(self, index: Any) -> Load:
        return self._map(lambda x: x[index])

    def _map(self, function: Callable, *others: Load) -> Load:
        fields = (vars(load).values() for load in (self, *others))
        return Load(*map(function, *fields))


class Costs:
    """The costs of placing tables on D groups of M shards.

    Args:
        tables: all tables.
        choices: choices for each table.
        shards: number M of shards.
        optimizer: default optimizer.
        workload: reads of the tables in a step.
        device: model of every device.
        program: passes through memory.

    Attributes:
        slabs: costs of each of the S shared slabs, by key.
        blocks: range of each slab's blocks among all K blocks, by key.
        row_bytes: bytes of a row of each shared slab, [S].
        position_bytes: bytes that a bag position of each block adds to the exchange, [K].
        starts: seconds that the collective of a slab takes to start, once for all of its tables,
            by key, of the C slabs that have one and that tables share.
        candidates: loads of the choices for each table.
        least: least bytes, distinct rows and row seconds that each table adds to the mean shard,
            [T, 3].
        share: bytes of all tables on the mean shard if a group has each row once. A row's copies in
            other groups are no waste: they are chosen where they save time.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        choices: Sequence[Sequence[Choice]],
        shards: int,
        optimizer: RowOptimizer | None,
        workload: Workload,
        device: Device,
        program: Program = XLA,
    ):
        self.shards = shards
        self._slab = functools.partial(
            SlabCosts, shards=shards, workload=workload, device=device, program=program
        )
        keys = [
            [slab_key(table, choice.pieces(table.name), shards, optimizer) for choice in own]
            for table, own in zip(tables, choices, strict=True)
        ]
        lengths: dict[SlabKey, set[int]] = {}
        for table, own in zip(tables, keys, strict=True):
            for key in filter(is_shared, own):
                lengths.setdefault(key, set()).update(workload.lengths(table.name))
        self.slabs = {key: self._slab(key, sorted(found)) for key, found in lengths.items()}
        ends = np.cumsum([0, *map(len, lengths.values())]).tolist()
        self.blocks = {key: slice(*ends[i : i + 2]) for i, key in enumerate(lengths)}
        self.row_bytes = np.array([slab.row_bytes for slab in self.slabs.values()], float)
        self.position_bytes = np.zeros(ends[-1])
        for key, slab in self.slabs.items():
            self.position_bytes[self.blocks[key]] = slab.position_bytes
        self.starts = {
            key: seconds
            for key in dict.fromkeys(key for own in keys for key in own if key.alone is None)
            if (seconds := self._slab(key, [1]).start_seconds)
        }
        self.candidates = [
            self._candidates(table, own, keys[i], workload)
            for i, (table, own) in enumerate(zip(tables, choices, strict=True))
        ]
        self.least = np.array([
            [np.min(load.rows.mean(axis=-1) @ self.row_bytes + load.table_bytes),
             np.min(load.reads.mean(axis=-1)),
             np.min(load.row_seconds.sum(axis=-2).mean(axis=-1))]
            for load in self.candidates
        ])  # fmt: skip
        groups = [
            [workload.data_groups if key.split == "devices" else 1 for key in own] for own in keys
        ]
        self.share = sum(
            np.min((load.rows.mean(axis=-1) @ self.row_bytes + load.table_bytes) * own)
            for load, own in zip(self.candidates, groups, strict=True)
        )

    def load(self, chosen: Sequence[int]) -> Load:
        """The load of one placement.

        Args:
            chosen: index of the choice of each table, for the first tables or all.
        """
        load = self._empty(1)
        for candidates, choice in zip(self.candidates, chosen, strict=False):
            load = load + candidates[choice : choice + 1]
        return load

    def seconds(
        self,
        rows: Float64[np.ndarray, "*O S"],
        positions: Float64[np.ndarray, "*O K"],
        members: Float64[np.ndarray, "*O C"],
    ) -> Float64[np.ndarray, "*O"]:
        """Seconds of shared slabs, see `SlabCosts.seconds`, and of `starts`.

        Args:
            rows: rows of each shared slab on one device, [*O, S].
            positions: bag positions of each of their blocks, [*O, K].
            members: tables in each slab of `starts`, [*O, C].
        """
        seconds = (members > 0) @ np.array(list(self.starts.values()))
        for i, (key, slab) in enumerate(self.slabs.items()):
            seconds += slab.seconds(rows[..., i], positions[..., self.blocks[key]])
        return seconds

    def seconds_by_part(self, chosen: Sequence[int]) -> dict[Part, float]:
        """The seconds of a placement of all tables by part of `COMPARED`.

        Those of rows at random are those of the shard that takes longest for them.
        """
        load = self.load(chosen)
        heights, positions = load.rows.max(axis=-1), load.positions.max(axis=-1)
        found = load.by_part
        for i, (key, slab) in enumerate(self.slabs.items()):
            found += slab.seconds_by_part(heights[:, i], positions[:, self.blocks[key]])
        by_part = dict(zip(COMPARED, found[0].tolist(), strict=True))
        slowest = load.row_seconds[0].sum(axis=0).argmax()
        by_part |= zip(ROW_PARTS, load.row_seconds[0, :, slowest].tolist(), strict=True)
        used = (load.members[0] > 0).tolist()
        by_part[STARTS] += sum(itertools.compress(self.starts.values(), used))
        return by_part

    def _empty(self, count: int) -> Load:
        slabs, blocks = len(self.slabs), len(self.position_bytes)
        shapes = (slabs, self.shards), (blocks, self.shards), (self.shards,), (2, self.shards)
        others = (), (), (len(COMPARED),), (len(self.starts),)
        return Load(*(np.zeros((count, *shape)) for shape in (*shapes, *others)))

    def _candidates(
        self,
        table: Table,
        choices: Sequence[Choice],
        keys: Sequence[SlabKey],
        workload: Workload,
    ) -> Load:
        bags = workload.lengths(table.name)
        load = self._empty(len(choices))
        over_all = any(key.split == "devices" for key in keys)
        distinct = (1.0, 1.0)
        if over_all:
            share = workload.distinct_share
            distinct = share(table, self.shards), share(table, 1)
        alone = {key: self._slab(key, list(bags), distinct=distinct) for key in keys}
        lookups = {key: slab.lookups(table) for key, slab in alone.items()}
        counts = np.array(list(bags.values()), float)
        for i, (choice, key) in enumerate(zip(choices, keys, strict=True)):
            rows = np.zeros(self.shards)
            for piece in choice.pieces(table.name):
                on = slice(None) if piece.shard is None else piece.shard
                rows[on] = piece.rows(table.rows) / alone[key].parts
            load.reads[i], *load.row_seconds[i] = np.outer(lookups[key], rows / table.rows)
            if is_shared(key):
                load.rows[i, list(self.slabs).index(key)] = rows
                blocks = self.blocks[key].start + np.searchsorted(
                    self.slabs[key].lengths, list(bags)
                )
                load.positions[i][np.ix_(blocks, choice.shards)] = counts[:, None]
            else:
                height = rows.max()
                load.table_bytes[i] = height * alone[key].row_bytes
                load.exchanged[i] = counts @ alone[key].position_bytes
                by_part = alone[key].seconds_by_part(height[None], counts[None])
                load.by_part[i] = by_part[0]
            if key in self.starts:
                load.members[i, list(self.starts).index(key)] = 1
            else:
                load.by_part[i, COMPARED.index(STARTS)] += alone[key].start_seconds
        return load


def is_shared(key: SlabKey) -> bool:
    """Whether shards may hold different numbers of rows of a slab."""
    return key.split == "rows" and key.alone is None
