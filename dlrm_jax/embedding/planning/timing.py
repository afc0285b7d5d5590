"""The costs of one slab: its bytes, and the times of the parts of a step that depend on it.

Times are bytes over bandwidths. They serve to compare plans: they leave out the parts that no plan
changes, and ignore that parts of a step may overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.owner_exchange import capacity
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_gradients import reduction
from dlrm_jax.embedding.slab import SlabKey, needs_sums
from dlrm_jax.embedding.table import Table

# Passes of an array through memory, counted in the code of the step. Vectors looked up are read and
# added to a sum. Pooled vectors and their cotangents are packed, sent and unpacked. Ids are routed,
# packed and unpacked. To sum gradients, ids are hashed into a scratch of up to 16 entries each, and
# gradients are made, summed by row and applied. Dense sums are zeroed, filled and applied. To find
# different rows, a device sorts its ids: log2 of a few thousands times, three numbers each.
_PASSES_LOOKUP = 3
_PASSES_POOLED = 8
_PASSES_IDS = 6
_PASSES_SCRATCH = 24
_PASSES_SORT = 100
_PASSES_UPDATE = 6
_PASSES_DENSE = 4
_ID_BYTES = 4


class SlabCosts:
    """The costs of a slab on one of D groups of M devices.

    Args:
        key: properties that the slab's tables share.
        lengths: bag lengths of the slab's K blocks.
        shards: number M of shards.
        workload: reads of the tables in a step, with the number D of groups.
        device: model of every device.
        distinct: expected share of different rows among the ids of a device, if the slab is fully
            sharded.

    Attributes:
        lengths: bag lengths of the blocks, [K].
        parts: number of devices that a piece on every shard is split over.
        width: width of a row on one device.
        trained: whether the tables are trained.
        row_bytes: bytes of one row on one device, with its optimizer state.
        position_bytes: bytes that one bag position of each block adds to the exchange, [K].
        position_seconds: seconds of a bag position of each block: its exchange and passes through
            memory, [K].
        needs_sums: whether an update needs the summed gradient of each row.
    """

    def __init__(
        self,
        key: SlabKey,
        lengths: Sequence[int],
        shards: int,
        workload: Workload,
        device: Device,
        distinct: float = 1.0,
    ):
        self._workload, self._device, self._shards = workload, device, shards
        replicated, over_all = key.split is None, key.split == "devices"
        devices = workload.data_groups * shards
        self.parts = devices if over_all else 1
        self._copies = devices if replicated else 1 if over_all else workload.data_groups
        self._stride = 1 if replicated else shards  # from a copy to the next
        self._samples = workload.batch_size / self._copies  # whose rows one device reads
        self.width = -(-key.dim // shards) if key.split == "columns" else key.dim
        self.trained = key.optimizer is not None
        self.needs_sums = needs_sums(key.optimizer, np.dtype(key.dtype))
        number = np.dtype(key.dtype).itemsize
        # Pooled vectors, gradients and the optimizer state have at least 32 bits.
        self._number = jnp.promote_types(key.dtype, jnp.float32).itemsize
        self._vector = self.width * self._number
        slots = list(key.optimizer.slots.values()) if key.optimizer else []
        slots = [slot for slot in slots if slot != "scalar"]  # which belongs to no row
        self._row_means = key.split == "columns" and "row" in slots
        sizes = {"row": self._number, "element": self._vector}
        self._table_row, self._slot_rows = self.width * number, [sizes[slot] for slot in slots]
        self.row_bytes = self._table_row + sum(self._slot_rows)

        self.lengths = np.array(lengths, float)
        vectors = (2 if self.trained else 1) * self._vector
        pooled = self._samples / self.parts  # samples whose bags one device pools
        # Owners send rows to the samples of a fully sharded slab, the pooled vectors of others; in
        # messages with room for more.
        room = 1.0
        if over_all:
            ids_of_all = round(pooled * sum(map(sum, workload.bags.values()))) or round(pooled)
            room = devices * capacity(ids_of_all, devices, distinct) / (distinct * ids_of_all)
        sent = room * distinct * self.lengths if over_all else 1.0
        ids = _ID_BYTES * (sent if over_all else self.lengths)
        # Over the shards of a group, and then, if it is fully sharded, over the groups.
        hops = [] if replicated else [(shards, 1)]
        hops += [(workload.data_groups, shards)] if over_all else []
        hops = [(count, stride) for count, stride in hops if count > 1]
        self.position_bytes = len(hops) * pooled * (ids + vectors * sent)
        passed = self._vector * (_PASSES_LOOKUP * self.lengths + _PASSES_POOLED * sent)
        passed += _PASSES_IDS * _ID_BYTES * self.lengths
        passed += over_all * _PASSES_SORT * _ID_BYTES * self.lengths
        self.position_seconds = np.zeros_like(self.lengths)
        for count, stride in hops:
            hop = device.exchange_seconds(1.0, count, stride)
            self.position_seconds += hop * self.position_bytes / len(hops)
        self.position_seconds += pooled * passed / device.memory_bandwidth

    def lookups(self, table: Table) -> tuple[float, float]:
        """The distinct rows of a table that a device reads if it has all rows.

        Returns:
            The number of these rows; and the seconds of reading them and of updating the rows of
            the whole batch.
        """
        row_seconds = self._device.row_seconds
        reads = self._workload.distinct_rows(table, self._samples)
        seconds = reads * row_seconds(self._table_row)
        if self.trained:
            written = self._workload.distinct_rows(table, float(self._workload.batch_size))
            seconds += 2 * written * sum(map(row_seconds, [self._table_row, *self._slot_rows]))
        return reads, seconds

    def seconds(
        self, rows: Float64[np.ndarray, "*O"], positions: Float64[np.ndarray, "*O K"]
    ) -> Float64[np.ndarray, "*O"]:
        """Seconds of the exchange, of passes through memory and of summing gradients over copies.

        Args:
            rows: number of rows of the slab on one device, [*O].
            positions: number of bag positions of each block, padding included, [*O, K].
        """
        seconds = positions @ self.position_seconds
        if not self.trained:
            return seconds
        batch, device = self._workload.batch_size / self.parts, self._device
        ids, bags = batch * (positions @ self.lengths), batch * positions.sum(axis=-1)
        way = reduction(rows, self.width, ids, bags, self._copies, self.needs_sums)
        if self._copies > 1:
            cotangents = _ID_BYTES * ids + bags * self._vector
            moved = np.where(way.exchanged, 2 * rows * (self._vector + self._number), cotangents)
            seconds += device.gather_seconds(1.0, self._stride, self._copies) * moved
        if self._row_means:  # over all shards, in a collective of the slab's own
            means = np.where(way.dense, rows, ids) * self._number
            seconds += 2 * device.gather_seconds(1.0, 1, self._shards) * means + device.latency
        occurrences = np.where(way.exchanged, ids / self._copies, ids)
        passed = (_PASSES_UPDATE * occurrences + _PASSES_DENSE * way.dense * rows) * self._vector
        passed += way.dedup * _PASSES_SCRATCH * _ID_BYTES * occurrences
        return seconds + passed / device.memory_bandwidth
