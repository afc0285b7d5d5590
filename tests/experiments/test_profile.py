"""Whose the time of a profile is."""

from __future__ import annotations

import pytest
from looping_program import LOOP

from experiments.characterize.hlo import Program
from experiments.characterize.profile import (
    DATA,
    IDLE,
    Event,
    Profile,
    class_seconds,
    shares,
    without_waiting,
)


def test_an_instant_belongs_equally_to_what_runs():
    intervals = [
        ("a", 1.0, 5.0),
        ("b", 3.0, 7.0),
        ("b", 4.0, 6.0),  # another thread's, of the same class
        ("c", 9.0, 12.0),  # goes on after the end
        ("c", -1.0, 0.5),
    ]
    found = shares(intervals, 0.0, 10.0)
    assert found == {"a": 2.0 + 1.0, "b": 1.0 + 2.0, "c": 0.5 + 1.0, IDLE: 0.5 + 2.0}
    assert sum(found.values()) == 10


def test_nothing_runs():
    assert shares([], 2.0, 5.0) == {IDLE: 3.0}


def test_collectives_count_from_when_all_have_come():
    events = [
        Event("sum", 0, 1.0, 5.0),
        Event("work", 1, 1.0, 3.0),
        Event("sum", 1, 3.0, 5.5),
        Event("sum", 2, 4.5, 4.75),  # of another group, alone
        Event("sum", 0, 6.0, 8.0),  # the next time
        Event("sum", 1, 7.0, 8.0),
    ]
    found = set(without_waiting(events, {"sum": ((0, 1), (2,))}))
    assert found == {
        Event("sum", 0, 3.0, 5.0),
        Event("work", 1, 1.0, 3.0),
        Event("sum", 1, 3.0, 5.5),
        Event("sum", 2, 4.5, 4.75),
        Event("sum", 0, 7.0, 8.0),
        Event("sum", 1, 7.0, 8.0),
    }


def test_what_is_in_a_loop_counts_and_not_the_loop():
    program = Program(LOOP)
    events = (
        Event("loop", 0, 1.0, 9.0),
        Event("double", 0, 2.0, 3.0),
        Event(DATA, 0, 2.5, 5.0),
        Event("double", 0, 6.0, 8.0),
    )
    found = class_seconds(Profile(2, 0.0, 10.0, events), program)
    cross, data, idle = (0.5 + 0.25 + 2.0) / 2, (0.25 + 2.0) / 2, 5.0 / 2
    assert found == pytest.approx({"cross": cross, DATA: data, IDLE: idle})
