"""What is true of every encoder of histories: candidates share one, and depend on no other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from packed_requests import REQUESTS, D, Requests, T, built, called, drawn

from dlrm_jax.models.history_encoder import HistoryEncoder
from dlrm_jax.models.hstu_candidates import HSTUCandidates
from dlrm_jax.models.stca import STCA


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


ENCODERS = [(STCA, {"heads": 2}), (HSTUCandidates, {"dropout": 0.0})]
# STCA takes longer to compile, and `test_request_scorer.py` has it.
ONE_BY_DEFAULT = [pytest.param(*ENCODERS[0], marks=pytest.mark.thorough), ENCODERS[1]]


def one_by_one(requests: Requests, history) -> tuple[Requests, np.ndarray]:
    """A copy of the history for each candidate."""
    spans = [requests.spans[owner] for owner in requests.owner]
    lengths = [int(end - first) for first, end in spans]
    size = -(-max(sum(lengths), 1) // 64) * 64
    copies = Requests(lengths, [1] * len(lengths), size, 0)

    def copied(x: np.ndarray) -> np.ndarray:
        out = np.zeros((size, *x.shape[1:]), x.dtype)
        joined = np.concatenate([x[first:end] for first, end in spans])
        out[: len(joined)] = joined
        return out

    times = jnp.asarray(copied(requests.times))
    copies.sequences = copies.sequences._replace(times=times)
    copies.of = copies.of._replace(times=jnp.asarray(requests.asked))
    return copies, copied(history)


@pytest.mark.thorough  # `tests/attention` has gradients of both kinds of attention
@pytest.mark.parametrize(("kind", "options"), ENCODERS)
def test_candidates_that_share_a_history_and_one_by_one_learn_the_same(kind, options):
    encoder, history = built(kind, **options), drawn(T, D)
    candidates = drawn(len(REQUESTS.owner), D, seed=1)
    copies, copied = one_by_one(REQUESTS, history)
    of = jax.tree.map(lambda x: x[: len(candidates)], REQUESTS.of)
    graph, state = nnx.split(encoder)
    cotangent = drawn(*candidates.shape, seed=3)

    def total(state, history, candidates, sequences, of):
        return jnp.sum(cotangent * nnx.merge(graph, state)(history, sequences, candidates, of))

    gradient = jax.jit(jax.value_and_grad(total, (0, 2), allow_int=True))
    shared = gradient(state, jnp.asarray(history), candidates, REQUESTS.sequences, of)
    single = gradient(state, jnp.asarray(copied), candidates, copies.sequences, copies.of)
    for own, other in zip(jax.tree.leaves(shared), jax.tree.leaves(single), strict=True):
        if own.dtype == np.float64:
            np.testing.assert_allclose(own, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("kind", "options"), ONE_BY_DEFAULT)
def test_what_is_kept_serves_candidates_that_come_later(kind, options):
    encoder: HistoryEncoder = built(kind, **options)
    history, candidates = jnp.asarray(drawn(T, D)), jnp.asarray(drawn(REQUESTS.count, D, seed=1))
    kept = jax.jit(encoder.encode)(history, REQUESTS.sequences)
    wanted = called(encoder, history, REQUESTS.sequences, candidates, REQUESTS.of)
    found = [
        jax.jit(encoder.score)(
            kept, candidates[part], jax.tree.map(lambda x, p=part: x[p], REQUESTS.of)
        )
        for part in (slice(0, 9), slice(9, 30), slice(30, None))
    ]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "options"), ENCODERS)
def test_a_candidate_depends_on_no_other_and_on_no_other_history(kind, options):
    encoder, history = built(kind, **options), drawn(T, D)
    candidates = drawn(REQUESTS.count, D, seed=1)
    own = REQUESTS.owner == 4
    first, end = REQUESTS.spans[4]

    def results(history, candidates):
        given = jnp.asarray(history), REQUESTS.sequences, jnp.asarray(candidates), REQUESTS.of
        return np.asarray(called(encoder, *given))[: len(own)]

    other, others = drawn(T, D, seed=7), drawn(REQUESTS.count, D, seed=8)
    other[first:end] = history[first:end]
    others[: len(own)][own] = candidates[: len(own)][own]
    before, after = results(history, candidates), results(other, others)
    np.testing.assert_array_equal(before[own], after[own])
    assert not np.isclose(before[~own], after[~own]).all(axis=1).any()
    other[end - 1, 0] += 1
    assert not np.allclose(results(other, others)[own], before[own])


@pytest.mark.parametrize(("kind", "options"), ONE_BY_DEFAULT)
def test_bfloat16_and_histories_longer_than_expected_are_finite(kind, options):
    encoder = built(kind, max_length=20, **options)

    def total(history, candidates):
        given = history, REQUESTS.sequences, candidates, REQUESTS.of
        return jnp.sum(encoder(*given).astype("float32") ** 2)

    given = jnp.asarray(drawn(T, D), "bfloat16"), jnp.asarray(drawn(REQUESTS.count, D), "bfloat16")
    for found in jax.jit(jax.grad(total, (0, 1)))(*given):
        assert np.isfinite(np.asarray(found, "float32")).all()


@pytest.mark.parametrize("kind", [STCA, pytest.param(HSTUCandidates, marks=pytest.mark.thorough)])
def test_dropout_depends_on_numbers_and_not_on_places(kind):
    """So that it is the same on every mesh."""
    encoder = built(kind, dropout=0.5)
    history, candidates = drawn(T, D), drawn(3, D, seed=1)
    requests = Requests([130, 300], [1, 2], T, 0)  # the other way round
    encoder.train()
    graph, state = nnx.split(encoder)
    run = jax.jit(lambda state, *given: nnx.merge(graph, state)(*given))

    def results(history, candidates, requests: Requests, tokens, numbers):
        sequences = requests.sequences._replace(numbers=jnp.asarray(tokens, "int32"))
        of = requests.of._replace(numbers=jnp.asarray(numbers, "int32"))
        return np.asarray(run(state, history, sequences, candidates, of))

    one = Requests([300, 130], [2, 1], T, 0)
    requests.of = requests.of._replace(times=jnp.asarray(np.roll(one.asked, 1)))
    requests.sequences = requests.sequences._replace(times=jnp.asarray(moved(one.times)))
    tokens, numbers = np.arange(T), np.arange(3)
    before = results(history, candidates, one, tokens, numbers)
    after = results(
        moved(history), np.roll(candidates, 1, 0), requests, moved(tokens), np.roll(numbers, 1)
    )
    np.testing.assert_allclose(after, np.roll(before, 1, 0), rtol=1e-9, atol=1e-9)
    other = results(history, candidates, one, tokens, numbers + 1)
    assert not np.isclose(before, other).all(axis=1).any()


def moved(x: np.ndarray) -> np.ndarray:
    """The tokens of two histories, of 300 and 130, the other way round."""
    return np.concatenate([x[300:430], x[:300], x[430:]])
