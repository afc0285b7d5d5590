"""Schedules: what runs beside what, and what the end waits for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.simulation.schedule import LANES, Operation, critical_path, schedule, seconds_of


def test_links_work_beside_the_device_and_one_lane_does_one_thing_at_a_time():
    slots = schedule([
        Operation("model", "products", 3),
        Operation("sums", "links", 2, ("model",)),
        Operation("pool", "memory", 1, ("model",)),
        Operation("update", "rows", 1, ("sums",)),
    ])  # fmt: skip
    times = {slot.operation.name: (slot.start, slot.end) for slot in slots}
    assert times == {"model": (0, 3), "sums": (3, 5), "pool": (3, 4), "update": (5, 6)}
    assert [slot.operation.name for slot in critical_path(slots)] == ["model", "sums", "update"]


def test_the_operation_with_the_longest_way_to_the_end_goes_first():
    operations = [
        Operation("short", "links", 2),
        Operation("long", "links", 2),
        Operation("after", "memory", 5, ("long",)),
    ]
    assert seconds_of(schedule(operations)) == 7  # 9 in the order of the list


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(sorted(LANES)), st.integers(1, 9), st.sets(st.integers(1, 4))),
    min_size=1,
    max_size=12,
)


@given(OPERATIONS)
def test_any_schedule_keeps_the_order_and_the_lanes(drawn):
    operations = [
        Operation(str(i), resource, seconds, tuple(str(i - back) for back in backs if back <= i))
        for i, (resource, seconds, backs) in enumerate(drawn)
    ]
    slots = schedule(operations)
    placed = {slot.operation.name: slot for slot in slots}
    assert placed.keys() == {operation.name for operation in operations}
    for slot in slots:
        assert slot.end - slot.start == slot.operation.seconds
        assert all(placed[name].end <= slot.start for name in slot.operation.after)
    for one, two in itertools.combinations(slots, 2):
        if LANES[one.operation.resource] == LANES[two.operation.resource]:
            assert one.end <= two.start or two.end <= one.start
    path = critical_path(slots)
    assert sum(slot.operation.seconds for slot in path) == pytest.approx(seconds_of(slots))
