"""The best plan there is, by integer programming: an independent statement of what is searched."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from dlrm_jax.embedding.planning.costs import EVERYWHERE, Costs
from dlrm_jax.embedding.planning.limits import Limits


def fastest(
    costs: Costs, limits: Limits, time_limit: float = 60.0
) -> tuple[float, list[int]] | None:
    """The least seconds, and by table the index of a choice; None if no plan keeps the limits.

    Only on one data group, and for tables whose gradients aren't summed densely in a shared slab:
    there the seconds are linear in what is chosen.
    """
    assert costs.timing.workload.data_groups == 1
    shards, tables = costs.shards, costs.candidates
    starts = np.cumsum([0, *(len(table.choices) for table in tables)])
    tallest = starts[-1]  # of each shared slab
    most = tallest + len(costs.shared)  # of each block
    first = np.cumsum([0, *(len(slab.lengths) for slab in costs.shared)]) + most
    busiest = first[-1]
    size = busiest + 1
    everywhere = {
        name: np.concatenate([t.everywhere[:, k] for t in tables])
        for k, name in enumerate(EVERYWHERE)
    }
    row_bytes = np.array([slab.row_bytes for slab in costs.shared])
    slot_bytes = np.concatenate([slab.slot_bytes for slab in costs.shared])

    unit = np.ones(size)  # of the continuous unknowns, near which the solver wants numbers of 1
    unit[tallest:most] = 1e6
    unit[busiest] = 1e-4
    rows, lower, upper = [], [], []

    def add(row: np.ndarray, low: float, high: float) -> None:
        scale = np.abs(row * unit).max() or 1
        rows.append(row * unit / scale)
        lower.append(low / scale)
        upper.append(high / scale)

    held_mean, used, reads = np.zeros(size), np.zeros(size), np.zeros((shards, size))
    for i, table in enumerate(tables):
        own = slice(starts[i], starts[i + 1])
        one = np.zeros(size)
        one[own] = 1
        add(one, 1, 1)
        slab = costs.slab[i]
        held_mean[own] = table.rows.mean(axis=1) * row_bytes[slab]
        used[own] = table.slots.mean(axis=1) * (costs.bags[i] @ costs.shared[slab].slot_bytes)
        reads[:, own] = table.reads.T
    for m in range(shards):
        busy = np.zeros(size)
        busy[busiest] = -1
        for slab in range(len(costs.shared)):
            height = np.zeros(size)
            height[tallest + slab] = -1
            count = np.zeros((len(costs.shared[slab].lengths), size))
            count[:, first[slab] : first[slab + 1]] = -np.eye(len(count))
            for i, table in enumerate(tables):
                own = slice(starts[i], starts[i + 1])
                if costs.slab[i] == slab:
                    height[own] = table.rows[:, m]
                    count[:, own] = costs.bags[i][:, None] * table.slots[:, m]
                    busy[own] = table.busy[:, m]
            add(height, -np.inf, 0)
            for row in count:
                add(row, -np.inf, 0)
        add(busy, -np.inf, 0)

    held, exchanged, seconds = np.zeros(size), np.zeros(size), np.zeros(size)
    held[: starts[-1]] = everywhere["held"]
    held_mean[: starts[-1]] += everywhere["held"]
    held[tallest:most] = row_bytes
    exchanged[: starts[-1]] = everywhere["exchanged"]
    used[: starts[-1]] += everywhere["exchanged"]
    exchanged[most:busiest] = slot_bytes
    reads[:, : starts[-1]] += everywhere["reads"]
    seconds[: starts[-1]] = everywhere["seconds"] + everywhere["busy"]
    seconds[busiest] = 1
    for slab, shared in enumerate(costs.shared):
        own = slice(first[slab], first[slab + 1])
        # With more rows than the batch has ids, gradients are summed by occurrence.
        update = costs.timing.update_seconds(
            shared.kind, shared.kind.dim, np.full_like(shared.lengths, 1e15), shared.lengths,
            np.ones_like(shared.lengths),
        )  # fmt: skip
        seconds[own] = shared.slot_seconds + update
    add(held, -np.inf, min(limits.memory, max(limits.small, limits.copies * costs.share)))
    add(held - limits.held * held_mean, -np.inf, 0)
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
