"""How long the parts of a step take that depend on where tables lie.

Times are bytes over bandwidths. They are for comparing plans; they leave out what no plan changes,
and that parts of a step may overlap.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.optimizer import RowOptimizer
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.table import Table

# How often an array passes through memory, by reading what the step does with it: vectors looked
# up are read and added to a sum; pooled vectors are packed, sent and unpacked, and so are their
# cotangents; ids are routed, packed and unpacked; to sum the gradients of occurrences, ids are
# hashed into a scratch of up to 16 entries each, gradients are made, summed by row and applied;
# sums that are made densely are zeroed, filled and applied.
_PASSES_LOOKUP = 3
_PASSES_POOLED = 8
_PASSES_IDS = 6
_PASSES_SCRATCH = 24
_PASSES_UPDATE = 6
_PASSES_DENSE = 4
_ID_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Kind:
    """What tables that may lie in one slab have in common, as costs see it.

    Attributes:
        dim: width.
        itemsize: of the weights.
        vector: bytes of a number of a pooled vector, of a gradient and of the state.
        row_slots: numbers of state a row.
        element_slots: numbers of state an element.
        trained: whether there are gradients.
        summed: whether those of equal rows are summed before the update.
    """

    dim: int
    itemsize: int
    vector: int
    row_slots: int
    element_slots: int
    trained: bool
    summed: bool

    @classmethod
    def of(cls, table: Table, optimizer: RowOptimizer | None) -> Kind:
        """The kind of a table, whose own optimizer goes before the given one."""
        own = table.row_optimizer(optimizer)
        slots = list(own.slots.values()) if own else []
        dtype = jnp.dtype(table.dtype)
        vector = jnp.promote_types(dtype, jnp.float32).itemsize
        rows, elements = slots.count("row"), slots.count("element")
        summed = own is not None and (table.rounds_randomly or not own.linear)
        return cls(table.dim, dtype.itemsize, vector, rows, elements, table.trainable, summed)

    def row_bytes(self, columns: int) -> int:
        """Of weights and state of one row, of which so many columns are held."""
        state = self.row_slots + self.element_slots * columns
        return columns * self.itemsize + state * self.vector


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times on one of D groups of M devices.

    Attributes:
        shards: M.
        workload: which knows D.
        device: that all are.
    """

    shards: int
    workload: Workload
    device: Device

    @property
    def group(self) -> float:
        """The samples of one data group."""
        return self.workload.batch_size / self.workload.data_groups

    def update_seconds(
        self,
        kind: Kind,
        columns: int,
        rows: Float64[np.ndarray, " O"],
        ids: Float64[np.ndarray, " O"],
        bags: Float64[np.ndarray, " O"],
        everywhere: bool = False,
    ) -> Float64[np.ndarray, " O"]:
        """The seconds of summing the gradients of a slab's rows over its copies.

        Args:
            kind: of its tables.
            columns: that a device holds.
            rows: of the slab on one device.
            ids: that a sample has for its slots, padding ones included.
            bags: these slots.
            everywhere: whether all devices have copies, or one device of each group.
        """
        if not kind.trained:
            return np.zeros_like(rows)
        batch, device = self.workload.batch_size, self.device
        copies = self.workload.data_groups * (self.shards if everywhere else 1)
        stride = 1 if everywhere else self.shards
        vector = columns * kind.vector
        # As `gradient.coalesce` decides: whether copies tell each other the sums of all rows, and
        # whether a device sums all rows or those that occur.
        sums = (copies > 1) & (rows * (columns + 1) <= batch * (ids + bags * columns))
        dense = sums | (rows <= batch * ids)
        seconds = np.zeros_like(rows)
        if copies > 1:
            seen = batch * (_ID_BYTES * ids + bags * vector)
            moved = np.where(sums, 2 * rows * (vector + kind.vector), seen)
            seconds = seconds + device.gather_seconds(1.0, stride, copies) * moved
        if columns < kind.dim and kind.row_slots:  # the means of rows are over all shards
            means = np.where(dense, rows, batch * ids) * kind.vector
            seconds = seconds + 2 * device.gather_seconds(1.0, 1, self.shards) * means
        occurrences = np.where(sums, batch / copies, batch) * ids
        passed = (_PASSES_UPDATE * occurrences + _PASSES_DENSE * dense * rows) * vector
        passed += ~dense * kind.summed * _PASSES_SCRATCH * _ID_BYTES * occurrences
        return seconds + passed / device.memory_bandwidth

    def slot(self, kind: Kind, length: int, columns: int) -> tuple[float, float]:
        """Bytes of the exchange, and seconds, of one slot, but for what its rows take."""
        vector = columns * kind.vector
        exchanged = self.group * (_ID_BYTES * length + (2 if kind.trained else 1) * vector)
        if self.shards == 1:
            exchanged = 0.0
        seconds = self.device.exchange_seconds(exchanged, self.shards)
        return exchanged, seconds + self.group * self.pooling_seconds(length, vector)

    def pooling_seconds(self, length: int, vector: int) -> float:
        """Of one sample's bag: the passes of its ids and vectors through memory."""
        passed = vector * (_PASSES_LOOKUP * length + _PASSES_POOLED)
        return (passed + _PASSES_IDS * _ID_BYTES * length) / self.device.memory_bandwidth

    def rows(self, table: Table, kind: Kind, columns: int, samples: float) -> tuple[float, float]:
        """Distinct rows that so many samples look up, and the seconds of these and of updates."""
        device, own = self.device, columns * kind.itemsize
        read = self.workload.distinct_rows(table, samples)
        busy = read * device.row_seconds(own)
        if kind.trained:
            state = kind.row_slots * device.row_seconds(kind.vector)
            state += kind.element_slots * device.row_seconds(columns * kind.vector)
            written = self.workload.distinct_rows(table, float(self.workload.batch_size))
            busy += 2 * written * (device.row_seconds(own) + state)
        return read, busy
