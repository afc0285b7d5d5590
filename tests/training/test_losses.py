import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.training.losses import (
    LOSSES,
    bce,
    class_weighted,
    fake_negative_weighted,
    group_column,
    make_loss,
    mse,
)
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.ranking_losses import Listwise, RankingLoss

LOGITS = jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0] * 2)
LABELS = jnp.array([0.0] * 5 + [1.0] * 5)


def test_values_are_those_of_the_formulas():
    z, y = np.asarray(LOGITS, "f8"), np.asarray(LABELS, "f8")
    p = 1 / (1 + np.exp(-z))
    cross_entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    np.testing.assert_allclose(bce(LOGITS, LABELS), cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(mse(LOGITS, LABELS), (p - y) ** 2, rtol=1e-5)
    weights = np.where(y == 1, 1 + p, (1 - p) * (1 + p))
    weighted = fake_negative_weighted(LOGITS, LABELS)
    np.testing.assert_allclose(weighted, weights * cross_entropy, rtol=1e-5)
    assert set(LOSSES.values()) == {bce, mse, fake_negative_weighted}


@pytest.mark.parametrize(
    ("text", "gamma", "of_labels"),
    [("focal", 2, (0.75, 0.25)), ("focal:1.5:0.1", 1.5, (0.9, 0.1)), ("focal:3", 3, (1, 1))],
)
def test_focal_loss_is_that_of_the_paper(text: str, gamma: float, of_labels: tuple[float, float]):
    z, y = np.asarray(LOGITS, "f8"), np.asarray(LABELS, "f8")
    p = 1 / (1 + np.exp(-z))
    right = np.where(y == 1, p, 1 - p)
    weight = np.where(y == 1, of_labels[1], of_labels[0])
    loss = make_loss(text)
    assert not isinstance(loss, RankingLoss | MemberLoss)
    expected = -weight * (1 - right) ** gamma * np.log(right)
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, LABELS), expected, rtol=1e-5)
    extreme, labels = jnp.array([1e4, -1e4, 200.0, -200.0]), jnp.array([0.0, 0.0, 1.0, 1.0])
    slopes = jax.jit(jax.grad(lambda z: loss(z, labels).sum()))(extreme)
    assert np.all(np.isfinite(slopes))


def test_losses_by_name(monkeypatch: pytest.MonkeyPatch):
    own = types.ModuleType("own_losses")
    own.__dict__.update(
        hinge=lambda z, y: jnp.maximum(0, 1 - z * (2 * y - 1)),
        mean=lambda z, y: bce(z, y).mean(),
        whole=lambda z, y: (z > 0).astype(int),
        wrong=lambda z: z,
    )
    monkeypatch.setitem(sys.modules, "own_losses", own)
    hinge = make_loss("own_losses:hinge")
    assert not isinstance(hinge, RankingLoss | MemberLoss)
    np.testing.assert_allclose(hinge(LOGITS, LABELS)[:3], [0, 0.5, 1])
    assert make_loss("bce") is bce
    assert make_loss("listwise:a:b") == Listwise("a:b")
    assert (group_column("pairwise:x"), group_column("own_losses:x")) == ("x", None)
    for text, message in REFUSED.items():
        with pytest.raises(UserError, match=message):
            make_loss(text)


REFUSED = {
    "bec": "loss: expected bce, mse, fake_negative_weighted, focal, .* got 'bec'",
    "focal:-1": "needs a GAMMA of 0 or more",
    "focal:2:1": "an ALPHA between 0 and 1",
    "focal:2:0.5:1": "such as focal:2:0.25",
    "focal:x": "got 'focal:x'",
    "bce:0.5": "loss: expected bce, mse, fake_negative_weighted, focal, .* got 'bce:0.5'",
    "pairwise": "loss: pairwise needs the column",
    "no_module:f": "loss: can't import .*; no_module.py must be in the dir.* PYTHONPATH",
    "own_losses:mean": "for each of 4 samples, got one for all; return them before their mean",
    "own_losses:whole": r"for each of 4 samples, got int32 of shape \(4,\)",
    "own_losses:wrong": "failed with the logits and labels of 4 samples",
}


@pytest.mark.parametrize("loss", LOSSES.values())
def test_class_weights_multiply_the_samples_of_their_class(loss):
    plain = np.asarray(loss(LOGITS, LABELS))
    weighted = class_weighted(loss, 0.5, 3.0)(LOGITS, LABELS)
    np.testing.assert_allclose(weighted[:5], 0.5 * plain[:5], rtol=1e-6)
    np.testing.assert_allclose(weighted[5:], 3.0 * plain[5:], rtol=1e-6)
    np.testing.assert_array_equal(class_weighted(loss, 1.0, 1.0)(LOGITS, LABELS), plain)
    np.testing.assert_allclose(class_weighted(loss, 0.0, 2.0)(LOGITS, LABELS)[:5], 0)


@pytest.mark.parametrize("loss", LOSSES.values())
@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(loss, logit):
    logits, labels = jnp.full(2, logit), jnp.array([0.0, 1.0])
    value, gradient = jax.value_and_grad(lambda z: loss(z, labels).sum())(logits)
    expected = 1 if loss is mse else abs(logit)  # of the sample that is wrong
    if loss is fake_negative_weighted and logit > 0:
        expected = 0  # a negative that is surely positive counts for nothing
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.all(np.isfinite(gradient))
