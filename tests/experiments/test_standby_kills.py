"""A run with a standby is ended, and the standby's bits are those of an unbroken run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.campaigns.standbys import CASES, Target, try_standby
from experiments.campaigns.tally import Tally


@pytest.mark.parametrize("number", [pytest.param(x, marks=pytest.mark.thorough) for x in range(6)])
def test_an_end_loses_nothing(number: int, tmp_path: Path):
    tally = Tally("standby_kills", 0, 60)
    case = CASES[number % len(CASES)]
    target = Target.prepare(tmp_path, [case])
    try_standby(tally, target, number, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, 0), tally.table()
    assert case.name in tally.table()
    assert not (tmp_path / "try").exists()


@pytest.mark.thorough
def test_a_loss_is_noticed(tmp_path: Path):
    target = Target.prepare(tmp_path, CASES[:1])
    (flags, expected), *_ = target.expected.items()
    target = dataclasses.replace(target, expected={flags: {**expected, "metrics.jsonl": "x"}})
    tally = Tally("standby_kills", 0, 60)
    try_standby(tally, target, 0, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, 1)
    assert (tmp_path / "try" / "run").exists(), "the files of a loss stay"
