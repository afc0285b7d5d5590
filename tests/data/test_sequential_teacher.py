"""A teacher whose labels depend on the order of a history."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.auc import auc
from dlrm_jax.data.generated.order_blind import order_blind_logits
from dlrm_jax.data.generated.succession import HORIZON
from dlrm_jax.data.generated.synthetic import generate
from dlrm_jax.data.generated.teacher import Teacher
from dlrm_jax.errors import UserError

ROWS, BAGS = (5, 40, 300, 300), (1, 1, 1, 16)
NEEDED = (ROWS, BAGS, 2, 1.05)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(*NEEDED, seed=0, kind="sequential")


@pytest.fixture(scope="module")
def drawn(teacher: Teacher) -> tuple[np.ndarray, np.ndarray]:
    return teacher.draw_features(np.random.default_rng(1), 20_000)


def test_the_latest_ids_decide_and_those_behind_the_horizon_do_not(teacher, drawn):
    dense, ids = drawn
    logits = teacher.logits(dense, ids)
    before, after = teacher.succession._before, teacher.succession._after

    def succession(row: np.ndarray) -> float:
        history = [i for i in row[3:] if i != ABSENT]
        u, w = before.vectors[history], after.vectors[row[2]]
        return sum(0.5**j * float(u[j] @ w) for j in range(min(4, len(history))))

    without = logits[:50] - [teacher.scales[0] * succession(row) for row in ids[:50]]
    main = [
        sum(
            float(effects.main[i])
            for effects, bag in zip(teacher.effects, np.split(row, [1, 2, 3]), strict=True)
            for i in bag
            if i != ABSENT
        )
        for row in ids[:50]
    ]
    numbers = dense[:50] @ teacher.dense_coefficients
    expected = teacher.scales[1] * np.array(main) + teacher.scales[2] * numbers
    np.testing.assert_allclose(without, expected + teacher.bias, atol=1e-4)

    full = ids[(ids[:, 3:] != ABSENT).all(axis=1)]
    zeros = np.zeros((len(full), 2), "f4")
    early, late = full.copy(), full.copy()
    early[:, 3 + HORIZON :] = early[:, : 2 + HORIZON : -1]
    late[:, 3:] = late[:, :2:-1]
    original = teacher.logits(zeros, full)
    np.testing.assert_allclose(teacher.logits(zeros, early), original, atol=1e-4)
    assert np.abs(teacher.logits(zeros, late) - original).mean() > 0.5


def test_without_the_order_the_mean_over_orders_is_the_best(teacher, drawn):
    dense, ids = drawn
    three = np.flatnonzero((ids[:, 3:] != ABSENT).sum(axis=1) == 3)[:40]
    expected = np.zeros(40)
    for order in itertools.permutations(range(3, 6)):
        other = ids[three].copy()
        other[:, 3:6] = ids[three][:, order]
        expected += 1 / (1 + np.exp(-teacher.logits(dense[three], other)))
    found = 1 / (1 + np.exp(-order_blind_logits(teacher, dense[three], ids[three])))
    np.testing.assert_allclose(found, expected / 6, atol=0.06)  # of 256 orders

    shuffled = ids.copy()
    rng = np.random.default_rng(2)
    for row in shuffled:
        length = (row[3:] != ABSENT).sum()
        row[3 : 3 + length] = rng.permutation(row[3 : 3 + length])
    one, other = (order_blind_logits(teacher, dense, x) for x in (ids, shuffled))
    assert np.corrcoef(one, other)[0, 1] > 0.995


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(x, marks=pytest.mark.thorough) for x in (1, 2))]
)
def test_who_is_blind_to_the_order_stays_below_the_teacher(seed):
    data = generate(*NEEDED[:3], 60_000, 1.05, seed, "sequential")
    (train,) = data.train.days
    teacher = Teacher(*NEEDED, seed=seed, kind="sequential")
    dense, ids = np.asarray(train.dense), np.asarray(train.ids)
    blind = auc(order_blind_logits(teacher, dense, ids), train.labels)
    known = teacher.logits(dense, ids)
    affinities = teacher.affinities(ids)
    nothing = known - teacher.scales[0] * teacher.succession.of_order(affinities)
    assert data.teacher_auc is not None
    assert auc(nothing, train.labels) + 0.03 < blind < data.teacher_auc["train"] - 0.03
    assert train.labels.mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("rows", "bags"), [(ROWS, (1,) * 4), ((5, 40, 30, 300), BAGS)])
def test_a_history_needs_a_candidate(rows, bags):
    with pytest.raises(
        UserError, match=r"^teacher: sequential expects a history, .* bag_lengths 1,"
    ):
        generate(rows, bags, 2, 100, 1.05, 0, "sequential")
