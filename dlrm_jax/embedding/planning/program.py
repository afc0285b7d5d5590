"""What the program of a step does for each number: its passes through memory, and its parts.

Planner and simulation count the same parts; the planner adds up their seconds, the simulation lets
some of them overlap.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Resource = Literal["memory", "rows", "links", "network", "products", "starts"]
"""What a part of a step takes its time from: memory from end to end, rows of it at random, links
within a host, the network between hosts, matrix products, starts of collectives."""


class Part(NamedTuple):
    """A part of a step's work on tables.

    Attributes:
        stage: one of `STAGES`.
        resource: resource that takes its time.
    """

    stage: str
    resource: Resource


STAGES = "ids", "lookup", "vectors", "cotangents", "update"
"""The work on tables, in its order: ids go to the owners of rows, which look up rows; vectors come
back; cotangents of them are sent, and rows are updated. The model runs before cotangents."""

PARTS = (
    Part("ids", "memory"),
    Part("ids", "links"),
    Part("ids", "network"),
    Part("lookup", "rows"),
    Part("lookup", "memory"),
    Part("vectors", "links"),
    Part("vectors", "network"),
    Part("cotangents", "links"),
    Part("cotangents", "network"),
    Part("update", "links"),
    Part("update", "network"),
    Part("update", "memory"),
    Part("update", "rows"),
)

ROW_PARTS = Part("lookup", "rows"), Part("update", "rows")
"""Of these, those that take longer on the shards that have more of the rows."""

STARTS = Part("update", "starts")
COMPARED = (*PARTS, STARTS)
"""What a search adds up: also the start of a collective that only the update of one slab needs. All
starts of a plan are counted where its collectives are known."""


class Program(NamedTuple):
    """Passes of an array through memory, and the dtype between devices.

    Attributes:
        lookup: passes of a vector for each id.
        pooled: passes of a pooled vector and of its cotangent, together.
        ids: passes of a number of 4 bytes for each id.
        dedup: these passes to sum the gradients of equal rows.
        sort: these passes to find different rows before the exchange.
        update: passes of a gradient for each id.
        dense: passes of a row if the gradients of all rows are summed.
        sent_bytes: bytes of a number of vectors and cotangents between devices; 0 for those of
            the vectors.
    """

    lookup: float
    pooled: float
    ids: float
    dedup: float
    sort: float
    update: float
    dense: float
    sent_bytes: int = 0


# Counted in the code of the step. Vectors looked up are read and added to a sum. Pooled vectors and
# their cotangents are packed, sent and unpacked. Ids are routed, packed and unpacked. To sum
# gradients, ids are hashed into a scratch of up to 16 entries each, and gradients are made, summed
# by row and applied. Dense sums are zeroed, filled and applied. To find different rows, a device
# sorts its ids: log2 of a few thousands times, three numbers each.
XLA = Program(lookup=3, pooled=8, ids=6, dedup=24, sort=100, update=6, dense=4)
"""The step of this package, compiled by XLA."""

# FBGEMM and HugeCTR pool while they read, and sum gradients while they update: rows and cotangents
# pass once. Pooled vectors are written, sent and received, as are cotangents. A radix sort of pairs
# of 8 bytes by eight bits a pass takes 32 passes of 4 bytes or so.
FUSED = Program(lookup=1, pooled=6, ids=6, dedup=32, sort=32, update=1, dense=2)
"""Steps of hand-written kernels, such as FBGEMM's and HugeCTR's."""
