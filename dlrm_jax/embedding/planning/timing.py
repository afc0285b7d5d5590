"""The costs of one slab: its bytes, and the times of the parts of a step that depend on it.

Times are bytes over bandwidths. They serve to compare plans: they leave out the parts that no plan
changes, and the starts of kernels and of collectives that all slabs share, which plans hardly
change; and they ignore that parts of a step may overlap. `simulation` adds these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.owner_exchange import capacity
from dlrm_jax.embedding.planning.devices import Device, LinkSeconds
from dlrm_jax.embedding.planning.program import COMPARED, XLA, Program
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_gradients import reduction
from dlrm_jax.embedding.slab import SlabKey, needs_sums
from dlrm_jax.embedding.table import Table

_ID_BYTES = 4
_INDEX = {tuple(part): i for i, part in enumerate(COMPARED)}
_NO_TIME = LinkSeconds(0.0, 0.0)


class SlabCosts:
    """The costs of a slab on one of D groups of M devices.

    Args:
        key: properties that the slab's tables share.
        lengths: bag lengths of the slab's K blocks.
        shards: number M of shards.
        workload: reads of the tables in a step, with the number D of groups.
        device: model of every device.
        distinct: expected shares of different rows among the ids of a device and among those of a
            group, if the slab is fully sharded.
        program: passes through memory.

    Attributes:
        lengths: bag lengths of the blocks, [K].
        parts: number of devices that a piece on every shard is split over.
        width: width of a row on one device.
        trained: whether the tables are trained.
        row_bytes: bytes of one row on one device, with its optimizer state.
        position_bytes: bytes that one bag position of each block adds to the exchange, [K].
        position_by_part: seconds of a bag position of each block, of its exchange and passes
            through memory, by part of `COMPARED`, [K, P].
        position_seconds: the sums of these, [K].
        start_seconds: seconds that a collective of the slab's own takes to start, however many
            tables and bags it has; 0 if it has none. `seconds` leaves them out.
        needs_sums: whether an update needs the summed gradient of each row.
    """

    def __init__(
        self,
        key: SlabKey,
        lengths: Sequence[int],
        shards: int,
        workload: Workload,
        device: Device,
        distinct: tuple[float, float] = (1.0, 1.0),
        program: Program = XLA,
    ):
        self._workload, self._device, self._shards = workload, device, shards
        self._program = program
        replicated, over_all = key.split is None, key.split == "devices"
        devices = workload.data_groups * shards
        self.parts = devices if over_all else 1
        self._copies = devices if replicated else 1 if over_all else workload.data_groups
        self._stride = 1 if replicated else shards  # from a copy to the next
        self._samples = workload.batch_size / self._copies  # whose rows one device reads
        self.width = -(-key.dim // shards) if key.split == "columns" else key.dim
        self.trained = key.optimizer is not None
        self.needs_sums = workload.all_rows or needs_sums(key.optimizer, np.dtype(key.dtype))
        number = np.dtype(key.dtype).itemsize
        # Pooled vectors, gradients and the optimizer state have at least 32 bits.
        self._number = jnp.promote_types(key.dtype, jnp.float32).itemsize
        self._vector = self.width * self._number
        slots = list(key.optimizer.slots.values()) if key.optimizer else []
        slots = [slot for slot in slots if slot != "scalar"]  # which belongs to no row
        self._row_means = key.split == "columns" and "row" in slots
        self.start_seconds = device.latency if self._row_means else 0.0
        widths = {"row": 1, "element": self.width}
        self._table_row = self.width, number
        self._rows = [self._table_row, *((widths[slot], self._number) for slot in slots)]
        self.row_bytes = sum(device.stored_bytes(*row) for row in self._rows)

        self.lengths = np.array(lengths, float)
        pooled = self._samples / self.parts  # samples whose bags one device pools
        ids = pooled * self.lengths
        # Over the shards of a group, and then, if it is fully sharded, over the groups.
        hops = [] if replicated else [(shards, 1, distinct[0])]
        hops += [(workload.data_groups, shards, distinct[1])] if over_all else []
        hops = [hop for hop in hops if hop[0] > 1]
        sent_number = program.sent_bytes or self._number
        # Rows of fewer bits than their gradients travel as they are stored.
        stored = number if over_all and number != self._number else sent_number
        back = sent_number if self.trained else 0
        # Requests of micro-batches are merged into one, which is sent before their gradients.
        micro_batches = workload.micro_batches
        merges = over_all and self.trained and micro_batches > 1
        packed, sorted_ids = np.zeros_like(ids), over_all * ids
        numbers = vectors = cotangents = _NO_TIME
        self.position_bytes = np.zeros_like(ids)
        for count, (partners, stride, share) in enumerate(hops):
            # Owners send rows to the samples of a fully sharded slab, the pooled vectors of others.
            asked, sent = ids, pooled + np.zeros_like(ids)
            sent_back = sent
            if over_all:
                of_all = pooled * workload.ids_of_all
                asked = sent = ids * _room(of_all / micro_batches, partners, share)
                sent_back = ids * _room(of_all, partners, share)
                sorted_ids = sorted_ids + (sent if count + 1 < len(hops) else 0)
            packed += sent
            nbytes = [
                _ID_BYTES * asked,
                stored * self.width * sent,
                (back * self.width + merges * _ID_BYTES) * sent_back,
            ]
            self.position_bytes += sum(nbytes)
            numbers += device.exchange(nbytes[0], partners, stride)
            vectors += device.exchange(nbytes[1], partners, stride)
            cotangents += device.exchange(nbytes[2], partners, stride)
        sorted_ids = (1 + merges) * sorted_ids
        passed = program.lookup * ids + program.pooled * (packed if hops else pooled)
        passed_ids = _ID_BYTES * (program.ids * ids + program.sort * sorted_ids)
        seconds = {
            ("ids", "memory"): passed_ids / device.memory_bandwidth,
            ("lookup", "memory"): self._vector * passed / device.memory_bandwidth,
            **_of("ids", numbers),
            **_of("vectors", vectors),
            **_of("cotangents", cotangents),
        }
        self.position_seconds = sum(seconds.values(), start=np.zeros_like(ids))
        self.position_by_part = np.zeros((len(ids), len(COMPARED)))
        for part, each in seconds.items():
            self.position_by_part[:, _INDEX[part]] = each

    def lookups(self, table: Table) -> tuple[float, float, float]:
        """The distinct rows of a table that a device reads if it has all rows.

        Returns:
            The number of these rows, in each micro-batch anew; the seconds of reading them; and
            those of updating the rows of the whole batch at random, 0 if all rows are updated.
        """
        row_seconds = self._device.row_seconds
        reads, update = self._workload.rows_read(table, self._samples), 0.0
        if self.trained and not self._workload.all_rows:
            written = self._workload.distinct_rows(table, float(self._workload.batch_size))
            update = 2 * written * sum(row_seconds(*row) for row in self._rows)
        return reads, reads * row_seconds(*self._table_row), update

    def seconds(
        self, rows: Float64[np.ndarray, "*O"], positions: Float64[np.ndarray, "*O K"]
    ) -> Float64[np.ndarray, "*O"]:
        """Seconds of the exchange, of passes through memory and of summing gradients over copies.

        Args:
            rows: number of rows of the slab on one device, [*O].
            positions: number of bag positions of each block, padding included, [*O, K].
        """
        update = self._of_rows(rows, positions)
        return sum(update.values(), start=positions @ self.position_seconds)

    def seconds_by_part(
        self, rows: Float64[np.ndarray, "*O"], positions: Float64[np.ndarray, "*O K"]
    ) -> Float64[np.ndarray, "*O P"]:
        """What `seconds` adds up, by part of `COMPARED`."""
        found = positions @ self.position_by_part
        for part, seconds in self._of_rows(rows, positions).items():
            found[..., _INDEX[part]] += seconds
        return found

    def _of_rows(
        self, rows: Float64[np.ndarray, "*O"], positions: Float64[np.ndarray, "*O K"]
    ) -> dict[tuple[str, str], Any]:
        """The seconds of parts that depend on the number of rows, without rows at random."""
        if not self.trained:
            return {}
        batch, device, program = self._workload.batch_size / self.parts, self._device, self._program
        ids, bags = batch * (positions @ self.lengths), batch * positions.sum(axis=-1)
        way = reduction(rows, self.width, ids, bags, self._copies, self.needs_sums)
        occurrences = np.where(way.exchanged, ids / self._copies, ids)
        passed = (program.update * occurrences + program.dense * way.dense * rows) * self._vector
        passed += way.dedup * program.dedup * _ID_BYTES * occurrences
        if self._workload.all_rows:  # gradients of all; tables and their state are read and written
            passed += (program.dense * self._vector + 2 * self.row_bytes) * rows
        links = _NO_TIME
        if self._copies > 1:
            cotangents = _ID_BYTES * ids + bags * self.width * (program.sent_bytes or self._number)
            moved = np.where(way.exchanged, 2 * rows * (self._vector + self._number), cotangents)
            links += device.gather(moved, self._stride, self._copies)
        if self._row_means:  # over all shards, in a collective of the slab's own
            means = np.where(way.dense | self._workload.all_rows, rows, ids) * self._number
            links += device.all_reduce(means, 1, self._shards)
        memory = {("update", "memory"): passed / device.memory_bandwidth}
        return memory | _of("update", links)


def _room(ids: float, partners: int, distinct: float) -> float:
    """Rows that a device exchanges with its partners in a round, for each of so many ids."""
    ids = max(1.0, ids)
    return partners * capacity(round(ids), partners, distinct) / ids


def _of(stage: str, seconds: LinkSeconds) -> dict[tuple[str, str], Any]:
    """The seconds of a stage on links, by part."""
    return {(stage, "links"): seconds.host, (stage, "network"): seconds.network}
