"""The estimated seconds of a step's parts."""

from __future__ import annotations

import dataclasses

import pytest

from dlrm_jax.embedding import Adam, Feature, Lookup, RowWiseAdagrad, Table, Workload
from dlrm_jax.embedding.collectives import collectives
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.planning.balance import seconds_by_part
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.planner import automatic_plan
from dlrm_jax.embedding.planning.program import XLA, Part

H100 = DEVICES["h100"]
SAMPLES = 256


@pytest.mark.parametrize("rows", [10_000, 40_000])
@pytest.mark.parametrize(
    ("optimizer", "state", "placement"),
    [
        (Adam(0.1), 2 * 16, "row_wise"),
        (RowWiseAdagrad(0.1), 1, "replicated"),
        (RowWiseAdagrad(0.1), 1, "column_wise"),
    ],
)
def test_updates_of_all_rows_pass_whole_tables_through_memory(optimizer, state, placement, rows):
    """The time grows with the rows that a device has, whatever the batch reads."""
    table, touched = Table("t", rows, 16), Workload(SAMPLES, 2)
    plan = automatic_plan([table], 4, {"t": placement})
    all_rows = dataclasses.replace(touched, all_rows=True)
    before, found = (
        seconds_by_part([table], plan, optimizer, each, H100) for each in (touched, all_rows)
    )
    own = rows // 4 if placement == "row_wise" else rows
    width = 4 if placement == "column_wise" else 16
    passed = 4 * (XLA.dense * width + 2 * (width + (state if state == 1 else state * width // 16)))
    memory = Part("update", "memory")
    assert found[memory] - before[memory] == pytest.approx(own * passed / H100.memory_bandwidth)
    assert found[Part("update", "rows")] == 0 < before[Part("update", "rows")]
    links = Part("update", "links")
    means = H100.all_reduce(4 * rows, 1, 4).host - H100.all_reduce(4 * SAMPLES, 1, 4).host
    more = means if placement == "column_wise" else 0
    assert found[links] - before[links] == pytest.approx(more)
    changed = {memory, links, Part("update", "rows")}
    assert all(found[part] == before[part] for part in found if part not in changed)


def test_the_bytes_of_means_are_those_of_the_rows_that_are_updated():
    table = Table("t", 10_000, 16)
    plan = automatic_plan([table], 4, {"t": "column_wise"})
    given = [table], [Feature("f")], [Lookup("f", "f", "t")], plan, RowWiseAdagrad(0.1)
    layout, shape = make_layout(*given, 2), {"data": 2, "model": 4}
    for all_rows, rows in ((False, SAMPLES), (True, 10_000)):
        moved = collectives(layout, shape, SAMPLES, all_rows=all_rows)
        (means,) = (each.nbytes for each in moved if each.purpose.startswith("means"))
        assert means == 4 * rows
