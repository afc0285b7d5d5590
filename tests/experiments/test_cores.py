"""The time that two cores take to hear from one another."""

from __future__ import annotations

import os
import sys

import pytest

from experiments.cores import round_trip_us

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="binds processes to cores")


def test_a_round_trip_takes_more_than_a_loop_and_less_than_a_switch_of_processes():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is but one core")
    found = round_trip_us()
    assert found is not None
    assert 0.02 < found < 1000


def test_one_core_has_nothing_to_hear_from():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert round_trip_us() is None
    finally:
        os.sched_setaffinity(0, cores)
