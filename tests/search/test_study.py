"""Trials in their store: how many there are, who has one, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.search.grammar import parse_space
from dlrm_jax.search.identity import Identity, sources_of
from dlrm_jax.search.store import STORE
from dlrm_jax.search.study import Study, Trial

CONFIG = {"batch_size": 64, "top_mlp": (8, 1)}
RATES = "learning_rate=0.01..1.0:log,optimizer=adam|sgd"


def study(directory: Path, space: str = RATES, data: str = "data", **changes) -> Study:
    settings = {"sampler": "random", **changes}
    config = settings.pop("config", CONFIG)
    return Study(directory, parse_space(space), Identity(data, config), True, **settings)


def taken(found: Study, trials: int) -> Trial:
    trial = found.next(trials)
    assert trial
    return trial


def die(trial: Trial) -> None:
    """What becomes of a trial if its process is killed."""
    trial._lock.release()


def test_processes_share_trials_and_a_killed_one_goes_on(tmp_path: Path):
    first, second = study(tmp_path), study(tmp_path)
    trials = [taken(first, 3), taken(second, 3), taken(first, 3)]
    assert [each.number for each in trials] == [0, 1, 2]
    assert len({str(each.values) for each in trials}) == 3
    assert second.next(3) is None, "there are three"
    trials[1].report(10, 640, 0.5)
    die(trials[1])
    again = taken(second, 3)
    assert again.number == 1
    assert again.is_again
    assert again.values == trials[1].values
    again.report(10, 640, 0.5)  # from its checkpoint, which was earlier
    again.report(20, 1280, 0.7)
    again.report(30, 1920, 0.6)
    assert again.complete() == 0.7
    trials[0].report(10, 640, 0.9)
    trials[0].complete()
    trials[2].give_up("refused", "why")
    assert first.next(3) is None
    best, other, refused = first.findings()
    assert (best.number, best.metric, best.outcome) == (0, 0.9, "complete")
    assert (other.number, other.metric, other.step, other.steps) == (1, 0.7, 20, 30)
    assert other.seconds is not None
    assert (refused.outcome, refused.reason, refused.metric) == ("refused", "why", None)

    # Random values are those of the trial's number, in whichever process and after any break.
    alone = study(tmp_path / "alone")
    same = [taken(alone, 3) for _ in range(3)]
    assert [each.values for each in same] == [each.values for each in trials]

    changes: list[tuple[dict[str, Any], str]] = [
        ({"space": "learning_rate=0.01..2.0:log,optimizer=adam|sgd"}, "other values of learning_r"),
        ({"space": "optimizer=adam|sgd"}, "another space, as to learning_rate"),
        ({"data": "b"}, "other data"),
        ({"config": {**CONFIG, "top_mlp": (1,)}}, r"top_mlp \[8, 1\], not \[1\]"),
    ]
    for change, message in changes:
        with pytest.raises(UserError, match=f"^output: .* has a search with {message}"):
            study(tmp_path, **change)


def test_a_combination_is_tried_once(tmp_path: Path):
    found = study(tmp_path, "optimizer=adam|sgd,batch_size=1..3", sampler="tpe")
    values = []
    while trial := found.next(100):
        values.append(str(trial.values))
        trial.report(1, 1, 0.5)
        trial.complete()
    assert len(values) == len(set(values)) == 6
    assert len(found.findings()) == 6
    assert found.importances() == {}


def test_the_worse_half_is_pruned_and_importances_follow(tmp_path: Path):
    found = study(tmp_path / "a # ? % b", "learning_rate=0.0..1.0,eps=0.0..1.0")
    rng = np.random.default_rng(0)
    known = [
        optuna.trial.create_trial(
            value=rate,
            params={"learning_rate": rate, "eps": rng.random()},
            distributions=found._distributions,
            intermediate_values={64: rate},
        )
        for rate in rng.random(20)
    ]
    found.store.add_trials(known)
    bad, good = taken(found, 22), taken(found, 22)
    assert bad.report(1, 64, 0.3)
    bad.prune()
    assert not good.report(1, 64, 0.7)
    found.prunes = False
    assert not good.report(2, 128, 0.0)
    good.complete()
    outcomes = [each.outcome for each in found.findings()]
    assert outcomes == ["complete"] * 21 + ["pruned"]
    shares = found.importances()
    assert next(iter(shares)) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1)


def test_a_directory_of_another_user(tmp_path: Path, read_only: Callable[[Path], None]):
    (tmp_path / "search").mkdir()
    read_only(tmp_path / "search")
    with pytest.raises(UserError, match=r"^output .* cannot be used: .*; give one that you can"):
        study(tmp_path / "search")


def test_directories_of_something_else(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    with pytest.raises(UserError, match=r"output: .* has files of something else, such as a.txt"):
        study(tmp_path / "mine")
    with pytest.raises(UserError, match=r"output: expected a directory, got the file .*a.txt"):
        study(tmp_path / "mine" / "a.txt")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / STORE).write_text("no database" * 100)
    with pytest.raises(UserError, match=r"sqlite3 can't be read or written: file is not a data"):
        study(tmp_path / "damaged")


def test_a_field_that_is_newer_than_the_search_has_its_earlier_value():
    space, now = parse_space(RATES), Identity("data", {**CONFIG, "features": ()})
    found = now.as_json(space)
    del found["config"]["features"]
    assert now.difference(found, space) is None


def test_own_code_is_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def go_on(**sources: str) -> Study:
        identity = Identity("data", CONFIG, sources=sources)
        return Study(tmp_path / "a", parse_space(RATES), identity, True)

    begun = go_on(mine="1", other="2")
    go_on(mine="1", other="2")
    with pytest.raises(UserError, match="a search with another source of other; give the same"):
        go_on(mine="1", other="3")
    assert not caplog.text
    found = begun.store.user_attrs["identity"]
    del found["sources"]  # as in earlier versions
    begun.store.set_user_attr("identity", found)
    go_on(mine="1")
    assert "the trials so far don't note the source of mine; if it has changed since" in caplog.text


def test_own_code_of_the_space_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "searched_code.py").write_text("A = B = C = D = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(loss="searched_code:D", metrics=("searched_code:C:max",))
    for space, names in (
        ("model=dlrm|searched_code:A", "ACD"),
        ("loss=bce|searched_code:B,model=dcn|dlrm", "BC"),
    ):
        found = sources_of(config, parse_space(space))
        assert {*found} == {f"searched_code:{name}" for name in names}
