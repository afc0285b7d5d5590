"""The benchmark of long histories prints both tables, and sharing a history changes no result."""

from __future__ import annotations

import pytest
from main_job import run

PROGRAM = ("-m", "experiments.benchmarks.long_history_speed")
SMALL = ("--width=8", "--heads=2", "--layers=1", "--rounds=1", "--candidates=20")


@pytest.mark.thorough
@pytest.mark.parametrize("encoder", ["stca", "hstu"])
def test_tables(encoder: str):
    done = run(
        *SMALL, f"--encoder={encoder}", "--lengths=64,128", "--shared_length=64", program=PROGRAM
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[1:4]] == ["64", "128", "slope"]
    for line in lines[-2:]:
        assert float(line[-1]) < 1e-5
