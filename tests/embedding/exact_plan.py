"""The best plan there is, by integer programming: an independent statement of what is searched."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.limits import Limits


def fastest(
    costs: Costs, limits: Limits, time_limit: float = 60.0
) -> tuple[float, list[int]] | None:
    """The least seconds, and by table the index of a choice; None if no plan keeps the limits.

    Only on one data-parallel group, and for tables whose gradients aren't summed densely in a
    shared slab: there the seconds are linear in what is chosen.
    """
    shards, tables = costs.shards, costs.candidates
    starts = np.cumsum([0, *(len(table.reads) for table in tables)])
    tallest = starts[-1]  # of each shared slab
    most = tallest + len(costs.slabs)  # of each block
    started = most + len(costs.position_bytes)  # the collectives of `Costs.starts`
    busiest = started + len(costs.starts)
    size = busiest + 1

    unit = np.ones(size)  # of the continuous unknowns, near which the solver wants numbers of 1
    unit[tallest:most] = 1e6
    unit[busiest] = 1e-4
    rows, lower, upper = [], [], []

    def add(row: np.ndarray, low: float, high: float) -> None:
        scale = np.abs(row * unit).max() or 1
        rows.append(row * unit / scale)
        lower.append(low / scale)
        upper.append(high / scale)

    mean_bytes, used, reads = np.zeros(size), np.zeros(size), np.zeros((shards, size))
    for i, table in enumerate(tables):
        own = slice(starts[i], starts[i + 1])
        one = np.zeros(size)
        one[own] = 1
        add(one, 1, 1)
        mean_bytes[own] = table.rows.mean(axis=-1) @ costs.row_bytes
        used[own] = table.positions.mean(axis=-1) @ costs.position_bytes
        for c in range(len(costs.starts)):
            joins = np.zeros(size)
            joins[own], joins[started + c] = table.members[:, c], -1
            add(joins, -np.inf, 0)
        reads[:, own] = table.reads.T
    for m in range(shards):
        row_seconds = np.zeros(size)
        row_seconds[busiest] = -1
        height = np.zeros((len(costs.slabs), size))
        height[:, tallest:most] = -np.eye(len(height))
        count = np.zeros((len(costs.position_bytes), size))
        count[:, most:started] = -np.eye(len(count))
        for i, table in enumerate(tables):
            own = slice(starts[i], starts[i + 1])
            height[:, own] = table.rows[:, :, m].T
            count[:, own] = table.positions[:, :, m].T
            row_seconds[own] = table.row_seconds[:, :, m].sum(axis=-1)
        for row in (*height, *count):
            add(row, -np.inf, 0)
        add(row_seconds, -np.inf, 0)

    nbytes, exchanged, seconds = np.zeros(size), np.zeros(size), np.zeros(size)
    alike = slice(0, starts[-1])
    nbytes[alike] = np.concatenate([table.table_bytes for table in tables])
    mean_bytes[alike] += nbytes[alike]
    nbytes[tallest:most] = costs.row_bytes
    exchanged[alike] = np.concatenate([table.exchanged for table in tables])
    used[alike] += exchanged[alike]
    exchanged[most:started] = costs.position_bytes
    seconds[alike] = np.concatenate([table.by_part.sum(axis=-1) for table in tables])
    seconds[busiest] = 1
    # With more rows than the batch has ids, gradients are summed by occurrence.
    many = np.full((len(costs.position_bytes), len(costs.slabs)), 1e15)
    none = np.zeros((len(many), len(costs.starts)))
    seconds[most:started] = costs.seconds(many, np.eye(len(many)), none)
    seconds[started:busiest] = list(costs.starts.values())
    add(
        nbytes,
        -np.inf,
        min(limits.memory, max(limits.small, limits.copies * costs.share)),
    )
    add(nbytes - limits.table_bytes * mean_bytes, -np.inf, 0)
    add(exchanged - limits.exchange * used, -np.inf, 0)
    for m in range(shards):
        add(reads[m] - limits.reads * reads.mean(axis=0), -np.inf, 0)

    found = milp(
        seconds * unit * 1e6,
        integrality=np.arange(size) < starts[-1],
        bounds=Bounds(0, np.where(np.arange(size) < starts[-1], 1, np.inf)),  # pyright: ignore
        constraints=LinearConstraint(csr_array(np.array(rows)), lower, upper),  # pyright: ignore
        options={"time_limit": time_limit, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        assert found.status == 2, found.message
        return None
    chosen = [int(np.argmax(found.x[starts[i] : starts[i + 1]])) for i in range(len(tables))]
    return float(seconds * unit @ found.x), chosen
