"""The time that two cores take to hear from one another."""

from __future__ import annotations

import os
import sys

import pytest

from experiments.benchmarks.cores import extremes, round_trip_us

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="binds processes to cores")


def test_a_round_trip_takes_more_than_a_loop_and_less_than_a_time_slice():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is but one core")
    # Other processes may keep the cores busy for a while.
    tries = (round_trip_us() for _ in range(10))
    found = next((microseconds for microseconds in tries if microseconds is not None), None)
    assert found is not None, "in none of ten times five seconds"
    assert 0.02 < found < 1000


def test_one_core_has_nothing_to_hear_from():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert round_trip_us() is None
    finally:
        os.sched_setaffinity(0, cores)


def test_cores_that_cannot_be_bound_are_not_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.benchmarks.cores.sys.executable", "/bin/false")
    assert round_trip_us() is None


def test_extremes_are_of_what_is_known():
    assert extremes([None, 3.0, 1.0, None, 2.0]) == {"min": 1.0, "max": 3.0}
    assert extremes([None]) is None
