from __future__ import annotations

import itertools

import pytest

from experiments.benchmarks import timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Seconds pass when it is called, and only then."""
    now = itertools.count()
    seconds = [0.0]

    def spend(amount: float) -> int:
        seconds[0] += amount
        return next(now)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: seconds[0])
    return spend


def test_only_the_steps_asked_for_are_run_and_timed(clock):
    steps = map(clock, (1.0, 2.0, 6.0, 100.0))
    assert timing.mean_seconds(steps, 3) == 3
    assert timing.mean_seconds(steps, 1) == 100


def test_the_fastest_of_all_but_the_first(clock):
    each = iter((1.0, 9.0, 5.0, 7.0))
    assert timing.fastest_seconds(lambda: clock(next(each)), tries=3) == 5
    assert list(each) == []


def test_runs_take_turns(clock):
    runs = {"a": lambda: clock(1), "b": lambda: clock(1)}
    assert timing.in_turn(runs, 3) == {"a": [0, 2, 4], "b": [1, 3, 5]}


def test_ratios_are_of_the_same_round():
    assert timing.ratio_quartiles([2, 4, 6, 8, 10], [2, 2, 2, 2, 2]) == (2, 3, 4)
    assert timing.ratio_quartiles([3], [2]) == (1.5, 1.5, 1.5)


def test_the_spread_is_that_of_the_quartiles():
    assert timing.summary([0.001, 0.004, 0.002, 0.003, 0.005]) == {
        "median_ms": 3, "min_ms": 1, "max_ms": 5, "spread": 1
    }  # fmt: skip
    assert timing.summary([0.25]) == {
        "median_ms": 250, "min_ms": 250, "max_ms": 250, "spread": 0
    }  # fmt: skip
