"""Scores outside of training are those of the evaluation, and few sizes are compiled."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from random_requests import COLUMNS, ROWS, random_requests

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.evaluation import Evaluation
from dlrm_jax.requests.model import learner_for
from dlrm_jax.requests.scorer import CheckedRequest, Encoded, RequestScorer
from dlrm_jax.requests.scoring_program import Sizes
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.requests.step import make_request_step

REQUESTS = random_requests(40, longest=80, most=30)
SETTINGS = RequestSettings(
    encoder="mean", width=8, max_length=20, mlp=(6,), batch_size=8, learning_rate=0.05,
    eval_length=70, layers=1,
)  # fmt: skip


@functools.cache
def trained(encoder: str, mesh: str) -> tuple[RequestScorer, np.ndarray]:
    """The scorer of a model after some steps, and the logits of all candidates."""
    devices = as_mesh(mesh)
    settings = dataclasses.replace(SETTINGS, encoder=encoder)
    batches = RequestTraining(REQUESTS, np.arange(40), settings, devices.size)
    learner = learner_for(COLUMNS, ROWS, batches.shapes, settings, devices)
    state, step = learner.init(0), make_request_step(learner)
    for number in range(3):
        state, _ = step(state, learner.put(batches[number]))
    logits = Evaluation(learner, REQUESTS, batches.shapes, settings).logits(state, np.arange(40))
    return RequestScorer.of_state(learner, COLUMNS, settings, state), logits


def encoded(scorer: RequestScorer, request: int) -> Encoded:
    own = slice(*REQUESTS.history_offsets[request : request + 2])
    assert REQUESTS.history_times is not None
    assert REQUESTS.times is not None
    history = {name: x[own] for name, x in REQUESTS.history.items()}
    return scorer.encode(history, REQUESTS.history_times[own], int(REQUESTS.times[request]))


def scores(scorer: RequestScorer, request: int, part: slice = slice(None)) -> np.ndarray:
    own = slice(*REQUESTS.candidate_offsets[request : request + 2])
    candidates = {name: x[own][part] for name, x in REQUESTS.candidates.items()}
    context = {name: int(x[request]) for name, x in REQUESTS.context.items()}
    return scorer.score(encoded(scorer, request), candidates, context)


@pytest.mark.parametrize(
    ("encoder", "mesh"),
    [
        ("mean", "2x4"),
        pytest.param("hstu", "1x1", marks=pytest.mark.thorough),
        pytest.param("stca", "2x4", marks=pytest.mark.thorough),
    ],
)
def test_scores_are_those_of_the_evaluation(encoder: str, mesh: str):
    scorer, logits = trained(encoder, mesh)
    assert logits.std() > 0.01
    for request in range(40):
        own = slice(*REQUESTS.candidate_offsets[request : request + 2])
        np.testing.assert_allclose(scores(scorer, request), logits[own], rtol=1e-5, atol=1e-5)


def test_a_history_serves_candidates_that_come_later_and_any_number_of_them():
    scorer, _ = trained("stca", "1x1")
    request = int(np.argmax(REQUESTS.counts))
    wanted = scores(scorer, request)
    kept = encoded(scorer, request)
    items = REQUESTS.candidates["item"][slice(*REQUESTS.candidate_offsets[request : request + 2])]
    country = {"country": int(REQUESTS.context["country"][request])}
    found = [scorer.score(kept, {"item": items[i : i + 1]}, country) for i in range(len(items))]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-6)
    small = RequestScorer(
        COLUMNS, scorer.settings, scorer.model, scorer.tables, Sizes.of(70, candidates=16)
    )
    np.testing.assert_allclose(scores(small, request), wanted, rtol=1e-5, atol=1e-6)
    assert scorer.score(kept, {"item": items[:0]}, country).shape == (0,)
    assert REQUESTS.times is not None
    later = scorer.score(kept, {"item": items}, country, int(REQUESTS.times[request]) + 10**6)
    assert not np.allclose(later, wanted)


def checked(scorer: RequestScorer, request: int) -> CheckedRequest:
    tokens, items = (
        slice(*offsets[request : request + 2])
        for offsets in (REQUESTS.history_offsets, REQUESTS.candidate_offsets)
    )
    assert REQUESTS.history_times is not None
    assert REQUESTS.times is not None
    return scorer.checked(
        {name: x[tokens] for name, x in REQUESTS.history.items()},
        {name: x[items] for name, x in REQUESTS.candidates.items()},
        {name: int(x[request]) for name, x in REQUESTS.context.items()},
        REQUESTS.history_times[tokens],
        int(REQUESTS.times[request]),
    )


@pytest.mark.parametrize(
    "encoder", ["mean", "stca", pytest.param("hstu", marks=pytest.mark.thorough)]
)
def test_packed_requests_have_the_logits_of_each(encoder: str):
    scorer, logits = trained(encoder, "1x1")
    wide = RequestScorer(
        COLUMNS, scorer.settings, scorer.model, scorer.tables, Sizes.of(70, 1000, 128)
    )
    requests = [checked(wide, i) for i in range(40)]
    for own in (scorer, wide):  # packs of few histories, and of many with parts of candidates
        found = np.concatenate(own.score_all(requests))
        np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
    assert scorer.score_all([]) == []
    for request in range(0, 40, 7):
        (alone,) = scorer.score_all([requests[request]])
        np.testing.assert_array_equal(alone, scores(scorer, request))


def test_sizes_are_few_and_all_of_them_are_compiled_at_once():
    assert Sizes.of(512) == Sizes((128, 512), (64, 256, 1024))
    assert Sizes.of(10_000, candidates=16) == Sizes((256, 1024, 4096, 16384), (16,))
    assert Sizes.of(70, 300) == Sizes((128, 512), (64, 256, 1024))
    scorer, _ = trained("mean", "1x1")
    sizes = Sizes.of(70, 300, 100)
    own = RequestScorer(COLUMNS, scorer.settings, scorer.model, scorer.tables, sizes)
    own.program.warm_up()
    functions: Any = own.program._encode, own.program._score
    assert [x._cache_size() for x in functions] == [2, 2]
    for request in range(40):
        scores(own, request)
    own.score_all([checked(own, i) for i in range(40)])
    assert [x._cache_size() for x in functions] == [2, 2]


@pytest.mark.parametrize(
    ("history", "times", "time", "text"),
    [
        ({"seen": [1]}, [5], 9, "history: expected the columns did, seen, got seen"),
        ({"seen": [1, 2], "did": [1]}, [5, 6], 9, "as many ids in all columns, got 2 of 'seen'"),
        ({"seen": [1], "did": [4]}, [5], 9, "expected ids below 4, the rows of table 'action'"),
        ({"seen": [1.5], "did": [1]}, [5], 9, "expected a list of integers in 'seen', got float64"),
        ({"seen": [1], "did": [1]}, None, 9, "times: expected those of the history and of the"),
        ({"seen": [1], "did": [1]}, [5, 6], 9, "times: expected 1, one a token, got 2"),
        ({"seen": [1], "did": [1]}, [5], 2**40, "times: expected less than 68 years before"),
        ({"seen": [1, 2], "did": [1, 1]}, [9, 10], 9, "none after .* got one 1 seconds after it"),
        ({"seen": [1], "did": [1]}, [-(2**63)], 2**63 - 1, "expected integers of seconds"),
    ],
)
def test_histories_that_the_model_does_not_take(history, times, time, text: str):
    scorer = scorer_without_training()
    given = {name: np.asarray(x) for name, x in history.items()}
    with pytest.raises(UserError, match=text):
        scorer.encode(given, None if times is None else np.asarray(times), time)


def test_candidates_that_the_model_does_not_take():
    scorer = scorer_without_training()
    none = {name: np.zeros(0, np.int32) for name in ("seen", "did")}
    kept = scorer.encode(none, np.zeros(0, np.int64), 5)
    with pytest.raises(UserError, match="context: expected the columns country, got none"):
        scorer.score(kept, {"item": np.zeros(1, np.int32)}, {})
    with pytest.raises(UserError, match="candidates: expected ids below 30, the rows of table 'it"):
        scorer.score(kept, {"item": np.asarray([30])}, {"country": 1})
    with pytest.raises(UserError, match=r"time: expected that of encode, .*, got one -1 seconds"):
        scorer.score(kept, {"item": np.zeros(1, np.int32)}, {"country": 1}, 4)
    # Values that aren't known are those of no row.
    found = scorer.score(kept, {"item": np.asarray([-1, -7])}, {"country": -1})
    assert found[0] == found[1]


@functools.cache
def scorer_without_training() -> RequestScorer:
    mesh = as_mesh("1x1")
    shapes = RequestTraining(REQUESTS, np.arange(40), SETTINGS, 1).shapes
    learner = learner_for(COLUMNS, ROWS, shapes, SETTINGS, mesh)
    return RequestScorer.of_state(learner, COLUMNS, SETTINGS, learner.init(0))
