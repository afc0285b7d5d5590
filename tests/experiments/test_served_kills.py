"""A server is killed while deltas arrive, and the next one serves the last whole state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.campaigns.served_deltas import CASES, Target, try_served
from experiments.campaigns.tally import Tally

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.prepare(tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_kill_loses_nothing(number: int, target: Target, tmp_path: Path):
    tally = Tally("served_kills", 0, 60)
    try_served(tally, target, number, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, 0), tally.table()
    assert CASES[number] in tally.table()
    assert not (tmp_path / "try").exists()


def test_a_state_that_is_not_served_is_noticed(target: Target, tmp_path: Path):
    other = dataclasses.replace(target, states=[*target.states[:-1], target.states[-1] + 1e-3])
    tally = Tally("served_kills", 0, 60)
    try_served(tally, other, 0, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, 1)
    assert (tmp_path / "try" / "models").exists(), "the files of a loss stay"
