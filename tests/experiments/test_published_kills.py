"""A run that publishes is killed, and what is published stays whole; `train --publish` for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.campaigns.publications import AIMS, Target, try_published
from experiments.campaigns.tally import Tally

SECONDS = 10  # of a run, about


@pytest.mark.parametrize("number", [pytest.param(x, marks=pytest.mark.thorough) for x in range(6)])
def test_a_kill_loses_nothing(number: int, tmp_path: Path):
    tally = Tally("published_kills", 0, 60)
    try_published(tally, Target(tmp_path / "caches", SECONDS), number, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, 0)
    assert AIMS[number].case in tally.table()
    assert not (tmp_path / "try").exists()


@pytest.mark.thorough
def test_a_loss_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A byte that is lost between the kill and the look."""

    def losing(target: Target, directory: Path, *_: object) -> bool:
        assert target.job(directory).run(directory / "run").outcome == "done"
        path = max((directory / "models").glob("*.deltas/*/rows.bytes"))
        path.write_bytes(path.read_bytes()[:-1])
        return True

    monkeypatch.setattr(Target, "kill", losing)
    monkeypatch.setattr(Target, "losses", lambda *_: [])
    tally = Tally("published_kills", 0, 60)
    try_published(tally, Target(tmp_path / "caches", SECONDS), 0, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, 1)
    assert (tmp_path / "try" / "models").exists(), "the files of a loss stay"
