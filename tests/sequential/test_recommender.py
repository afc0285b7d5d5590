"""Recommendations: those of the evaluation, in the words of the log, and nothing compiled late."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from compilations import compilations
from planted_histories import LOG, SETTINGS, SPLIT

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.evaluation import Evaluation
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.recommender import Recommender
from dlrm_jax.sequential.run import run

NAMES = pl.Series([f"item {number}" for number in range(len(LOG.values))])


@functools.cache
def untrained(encoder: Any = "sasrec", mesh: str = "1x1", **settings) -> Recommender:
    own = dataclasses.replace(SETTINGS, encoder=encoder, **settings)
    shapes = SequenceTraining(LOG, SPLIT.train, own, as_mesh(mesh).size).shapes
    learner = learner_for(len(LOG.values), shapes, own, as_mesh(mesh))
    return Recommender.of_state(learner, own, learner.init(3), NAMES)


def histories_of(questions) -> tuple[list[list[str]], list[list[int]], list[int]]:
    """Items, times and time of each question."""
    places = [slice(*x) for x in zip(*questions, strict=True)]
    items = [NAMES[LOG.items[x]].to_list() for x in places]
    return items, [LOG.times[x].tolist() for x in places], LOG.times[questions.asked].tolist()


@pytest.mark.parametrize(
    ("encoder", "mesh", "exclude_seen"),
    [
        pytest.param("hstu", "2x4", False, marks=pytest.mark.thorough),
        pytest.param("bag", "2x4", True, marks=pytest.mark.thorough),
        pytest.param("hstu", "1x1", True, marks=pytest.mark.thorough),
        ("sasrec", "1x1", False),
    ],
)
def test_the_first_items_are_those_of_the_evaluation(
    encoder: Any, mesh: str, exclude_seen: bool, tmp_path: Path
):
    settings = dataclasses.replace(
        SETTINGS, encoder=encoder, epochs=1, max_length=9, exclude_seen=exclude_seen
    )
    outcome = run(LOG, SPLIT, settings, as_mesh(mesh), tmp_path / "run", lambda _: None)
    own = Recommender.of_state(outcome.learner, settings, outcome.state, NAMES)
    items, times, time = histories_of(SPLIT.test)
    timed = {"times": times, "time": time} if encoder == "hstu" else {}
    found = own.recommend(items, 5, **timed)
    evaluation: Evaluation = outcome.evaluation
    histories, vectors = (
        evaluation.histories(outcome.state, SPLIT.test),
        evaluation.items(outcome.state),
    )
    logits = histories @ vectors.T / settings.temperature
    for each, seen, of_all in zip(found, items, logits, strict=True):
        wanted = np.asarray([x not in seen or not exclude_seen for x in NAMES])
        best = np.argsort(-np.where(wanted, of_all, -np.inf), kind="stable")[:5]
        assert each.items == NAMES[best].to_list()
        np.testing.assert_allclose(each.scores, of_all[best], rtol=1e-4, atol=1e-4)
    # With exclusion, the evaluation asks for items that are chosen again all the same.
    if not exclude_seen:
        chosen = NAMES[LOG.items[SPLIT.test.asked]].to_list()
        hits = [answer in each.items for answer, each in zip(chosen, found, strict=True)]
        assert np.mean(hits) == outcome.summary["test"]["model"]["hr@5"]
        assert 0 < sum(hits) < len(hits)


def test_one_at_a_time_is_as_many_together():
    own = untrained("hstu")
    items, times, time = histories_of(SPLIT.test)
    asked = [own.question(*x) for x in zip(items, [7] * len(items), times, time, strict=True)]
    together = own.answer(asked)
    assert len(asked) > 60  # more than a pack
    for question, found in zip(asked[:5], together, strict=False):
        (alone,) = own.answer([question])
        assert alone.items == found.items
        np.testing.assert_allclose(alone.scores, found.scores, rtol=1e-5, atol=1e-5)


def test_the_latest_items_are_read_and_unknown_ones_are_skipped():
    own = untrained("hstu", max_length=3)
    items, times = ["item 4", "item 7", "item 2", "item 9"], [10, 20, 30, 40]
    (whole,) = own.recommend([items], 8, [times], [50], exclude_seen=True)
    (latest,) = own.recommend([items[1:]], 9, [times[1:]], [50], exclude_seen=True)
    assert "item 4" not in whole.items  # seen, though it isn't read
    assert [x for x in latest.items if x != "item 4"][:8] == whole.items
    more = [*items[:2], "unheard of", *items[2:]], [*times[:2], 25, *times[2:]]
    (skipped,) = own.recommend([more[0]], 8, [more[1]], [50], exclude_seen=True)
    assert skipped.items == whole.items
    assert (skipped.unknown, whole.unknown) == (1, 0)
    start = datetime.datetime(2020, 1, 1)
    dates = [start + datetime.timedelta(seconds=x) for x in (*times, 50)]
    (dated,) = own.recommend([items], 8, [dates[:4]], dates[4:], exclude_seen=True)
    np.testing.assert_array_equal(dated.scores, whole.scores)
    everything = NAMES.to_list()
    (all_of_them,) = own.recommend([items], 1024, [times], [50], exclude_seen=False)
    assert sorted(all_of_them.items) == sorted(everything)  # 30
    (rest,) = own.recommend([everything[2:]], 9, [[0] * 28], [1], exclude_seen=True)
    assert sorted(rest.items) == ["item 0", "item 1"]


def test_nothing_is_compiled_after_the_warm_up():
    own = untrained()
    with compilations() as before:
        own.warm_up()
    assert before
    with compilations() as late:
        for count in (1, 2, 9, 70):
            for k in (1, 10, 30, 1024):
                own.recommend([["item 3", "item 5"] * count] * count, k, exclude_seen=k == 1)
    assert not late


def test_numbers_stay_numbers():
    own = untrained()
    numbered = Recommender(own.settings, own.model, own.table, pl.Series(range(100, 130)))
    (named,), (found,) = own.recommend([["item 3"]]), numbered.recommend([np.asarray([103])])
    assert found.items == [int(x.removeprefix("item ")) + 100 for x in named.items]
    with pytest.raises(UserError, match="expected numbers, as the items of the log are, got '3'"):
        numbered.recommend([["3"]])
    with pytest.raises(UserError, match=r"column of items: expected integers.*got Date"):
        Recommender(own.settings, own.model, own.table, pl.Series([datetime.date(2020, 1, 1)] * 30))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"history": "item 3"}, "history: expected a list of items, got 'item 3'"),
        ({"history": ["item 3", None]}, "history: expected strings, .* got None at place 1"),
        ({"history": ["new", "newer"]}, "expected at least one item .* got 2 items and none"),
        (
            {"history": [], "times": []},
            "expected at least one item .* got 0 items and none",
        ),
        ({"k": 0}, "k: expected a number from 1 to 1,024, got 0"),
        ({"k": 1025}, "k: expected a number from 1 to 1,024, got 1025"),
        ({"k": True}, "k: expected a number from 1 to 1,024, got True"),
        ({"times": None}, "times: expected the times of the history and that of the question"),
        ({"time": None}, "time: expected the times of the history and that of the question"),
        ({"times": [1]}, "times: expected 2, one an item, got 1"),
        ({"times": [2, 1]}, "times: expected them ascending"),
        ({"times": [2, 4]}, "times: expected them ascending, and that of the question not before"),
        ({"times": [1.5, 2]}, "times: expected integers of seconds, or date objects"),
        (
            {"times": "ab"},
            "times: expected integers of seconds, or date objects of Python, got 'ab'",
        ),
        ({"time": 2**31 + 3}, "times: expected less than 68 years before the question's"),
        ({"time": 2**80}, "time: expected an integer of seconds, or a date"),
        ({"time": 2**63}, "time: expected an integer of seconds, or a date"),
    ],
)
def test_what_is_refused(given: dict, message: str):
    whole = {"history": ["item 3", "item 5"], "times": [1, 2], "time": 3} | given
    with pytest.raises(UserError, match=message):
        untrained("hstu").question(**whole)


def test_a_message_names_the_history_and_times_must_be_read():
    own = untrained("bag")
    with pytest.raises(UserError, match="history 1: history: expected at least one item"):
        own.recommend([["item 3"], ["new"]])
    with pytest.raises(UserError, match="times: expected none, as bag reads no times"):
        own.question(["item 3"], times=[3])
    with pytest.raises(UserError, match="time: expected 1, one a history, got 2"):
        own.recommend([["item 3"]], time=[3, 4])
