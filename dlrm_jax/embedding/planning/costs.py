"""What each way to place each table costs a device, in bytes and in seconds.

Shards differ in what lies in *shared* slabs: those of tables that are on one shard or on some. Such
a slab, and the blocks that read it, are as long everywhere as on the fullest shard. Whatever lies
alike on all shards is a plain sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.layout import OWN_SLAB_ROWS
from dlrm_jax.embedding.optimizer import RowOptimizer
from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.timing import Kind, Timing
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.table import Table

EVERYWHERE = ("held", "exchanged", "seconds", "reads", "busy")
"""What a choice adds to every device: bytes of tables and state, bytes of the exchange, seconds,
distinct rows that are looked up, and seconds of reading and writing rows at random."""


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The O choices for one table, and what each adds to which of the M shards.

    Attributes:
        choices: in the order of the arrays.
        rows: of the shared slab.
        slots: 1 where the shard pools the table's bags.
        reads: distinct rows that are looked up, in shared slabs.
        busy: seconds of reading and writing them.
        everywhere: on every device, outside of shared slabs; see `EVERYWHERE`.
    """

    choices: Sequence[Choice]
    rows: Float64[np.ndarray, "O M"]
    slots: Float64[np.ndarray, "O M"]
    reads: Float64[np.ndarray, "O M"]
    busy: Float64[np.ndarray, "O M"]
    everywhere: Float64[np.ndarray, "O 5"]


@dataclasses.dataclass(frozen=True)
class Shared:
    """A slab that shards share unequally, and the blocks that read it.

    Attributes:
        row_bytes: of weights and optimizer state.
        lengths: of its blocks.
        slot_bytes: of each block, what one slot adds to the exchange.
        slot_seconds: of each block, what one slot costs: exchange, and passes through memory.
        kind: of its tables.
    """

    row_bytes: int
    lengths: Float64[np.ndarray, " K"]
    slot_bytes: Float64[np.ndarray, " K"]
    slot_seconds: Float64[np.ndarray, " K"]
    kind: Kind


class Costs:
    """The costs of placing tables on D groups of M shards.

    Args:
        tables: all tables.
        choices: by table, what to choose from.
        shards: M.
        optimizer: of tables that have none of their own.
        workload: what is asked of them.
        device: that they lie on.

    Attributes:
        timing: of these.
        candidates: by table.
        shared: the slabs that shards share unequally.
        slab: by table, which of these is its.
        share: a device's part of the bytes of all tables and their state, held once.
        bags: by table, how many bags it adds to each block of the shared slab.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        choices: Sequence[Sequence[Choice]],
        shards: int,
        optimizer: RowOptimizer | None,
        workload: Workload,
        device: Device,
    ):
        self.shards = shards
        self.timing = Timing(shards, workload, device)
        keys = [  # as in `layout.make_layout`
            (optimizer_key(t.row_optimizer(optimizer)), t.dim, t.dtype, t.rounds_randomly)
            for t in tables
        ]
        order = list(dict.fromkeys(keys))
        self.slab = [order.index(key) for key in keys]
        self.shared: list[Shared] = []
        self.bags: list[np.ndarray] = [np.zeros(0)] * len(tables)
        for number in range(len(order)):
            members = [i for i, slab in enumerate(self.slab) if slab == number]
            counts = [workload.lengths(tables[i].name) for i in members]
            lengths = sorted({length for count in counts for length in count})
            for i, count in zip(members, counts, strict=True):
                self.bags[i] = np.array([count.get(length, 0) for length in lengths], float)
            kind = Kind.of(tables[members[0]], optimizer)
            slots = [self.timing.slot(kind, length, kind.dim) for length in lengths]
            self.shared.append(
                Shared(
                    kind.row_bytes(kind.dim),
                    np.array(lengths, float),
                    np.array([nbytes for nbytes, _ in slots]),
                    np.array([seconds for _, seconds in slots]),
                    kind,
                )
            )
        # A device's share of everything that is to be held once.
        self.share = (
            sum(t.rows * self.shared[k].row_bytes for t, k in zip(tables, self.slab, strict=True))
            / shards
        )
        self.candidates = [
            self._candidates(table, own, self.shared[slab].kind)
            for table, own, slab in zip(tables, choices, self.slab, strict=True)
        ]

    def _candidates(self, table: Table, choices: Sequence[Choice], kind: Kind) -> Candidates:
        shape = (len(choices), self.shards)
        rows, slots, reads, busy = (np.zeros(shape) for _ in range(4))
        everywhere = np.zeros((len(choices), len(EVERYWHERE)))
        spread = _spread(table, choices, self.shards)
        whole = self.timing.rows(table, kind, kind.dim, self.timing.group)
        for i, choice in enumerate(choices):
            if spread[i]:
                everywhere[i] = self._alike(table, choice, kind)
                continue
            held = np.array([piece.rows(table.rows) for piece in choice.pieces(table.name)])
            at = list(choice.shards)
            rows[i, at] = held
            slots[i, at] = 1
            reads[i, at] = whole[0] * held / table.rows
            busy[i, at] = whole[1] * held / table.rows
        return Candidates(choices, rows, slots, reads, busy, everywhere)

    def _alike(self, table: Table, choice: Choice, kind: Kind) -> Sequence[float]:
        """What a choice adds that is the same for all shards, in the order of `EVERYWHERE`."""
        rows, columns, samples, share = table.rows, kind.dim, self.timing.group, 1.0
        if choice.placement == "replicated":
            samples /= self.shards
        elif choice.placement == "column_wise":
            columns = -(-columns // self.shards)
        else:
            rows, share = -(-table.rows // self.shards), 1 / self.shards
        lengths = self.timing.workload.lengths(table.name)
        ids = self.timing.workload.ids(table.name)
        exchanged = seconds = 0.0
        for length, bags in lengths.items():
            nbytes, own = self.timing.slot(kind, length, columns)
            if choice.placement == "replicated":
                own = samples * self.timing.pooling_seconds(length, columns * kind.vector)
            else:
                exchanged += bags * nbytes
            seconds += bags * own
        update = self.timing.update_seconds(
            kind,
            columns,
            np.array([float(rows)]),
            np.array([float(ids)]),
            np.array([float(sum(lengths.values()))]),
            choice.placement == "replicated",
        )
        seconds += update.item()
        reads, busy = self.timing.rows(table, kind, columns, samples)
        return (
            float(rows * kind.row_bytes(columns)),
            exchanged,
            seconds,
            reads * share,
            busy * share,
        )


def _spread(table: Table, choices: Sequence[Choice], shards: int) -> Bool[np.ndarray, " O"]:
    """Which choices add the same to all shards and lie in no shared slab."""
    alone = table.rows >= OWN_SLAB_ROWS
    return np.array(
        [
            choice.placement in ("replicated", "column_wise")
            or (alone and len(choice.shards) == shards)
            for choice in choices
        ]
    )
