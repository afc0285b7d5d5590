"""Losses of an ensemble's members are those of plain loops, on every mesh."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from saved_run import CONFIG, examples

from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import check_config, make_learner
from dlrm_jax.training.compiled import compile_step, compiled_collectives, planned_collectives
from dlrm_jax.training.member_losses import MEMBER_LOSSES
from dlrm_jax.training.sampling import why_uncorrected
from dlrm_jax.training.step import make_train_step

KINDS = pytest.mark.parametrize("kind", MEMBER_LOSSES)
MODELS = {"tri_bce": "fcn", "self_distillation": "finalnet"}


def cross_entropy(z: float, y: float) -> float:
    p = 1 / (1 + np.exp(-z))
    return -y * np.log(p) - (1 - y) * np.log(1 - p)


def loss_of(kind: str, members, labels, weights, taught) -> float:
    """The loss in float64; ``taught`` are the constants of distillation."""
    logits = [np.mean(row) for row in members]

    def mean(values) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    whole = mean(cross_entropy(z, y) for z, y in zip(logits, labels, strict=True))
    loss = whole
    for p in range(members.shape[1]):
        if kind == "tri_bce":
            own = mean(cross_entropy(row[p], y) for row, y in zip(members, labels, strict=True))
            loss += max(0, own - whole) * own
        else:
            rows = zip(members, taught, strict=True)
            loss += mean(cross_entropy(row[p], target) for row, target in rows)
    return loss


def drawn(members: int = 2):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(16, members)) + np.arange(members)  # the last member is the worst
    y, w = (rng.random(16) < 0.4).astype(float), rng.choice([0, 0.5, 2.0], 16)
    return z, y, w


@KINDS
@pytest.mark.parametrize(("shape", "members"), [("1x1", 2), ("2x4", 3), ("4x2", 2), ("1x8", 3)])
def test_loss_and_derivatives(kind: str, shape: str, members: int):
    """On devices that differentiate a share each; members of which one is worse than the whole."""
    z, y, w = drawn(members)
    mesh, axes = make_mesh(shape), ("data", "model")
    loss, split, whole = MEMBER_LOSSES[kind], PartitionSpec(axes), PartitionSpec()

    def of_device(z, y, w):
        value, slopes = jax.value_and_grad(loss.share)(z, y, w, axes)
        return jax.lax.psum(value, axes), slopes

    with jax.enable_x64(True):
        on_each = jax.shard_map(
            of_device, mesh=mesh, in_specs=split, out_specs=(whole, split), check_vma=False
        )
        value, slopes = map(np.asarray, jax.jit(on_each)(*map(jnp.asarray, (z, y, w))))
    taught = 1 / (1 + np.exp(-z.mean(1)))
    assert float(value) / w.sum() == pytest.approx(loss_of(kind, z, y, w, taught), rel=1e-12)
    for i, p in np.ndindex(*z.shape):
        step = 1e-6 * (np.arange(z.size) == i * members + p).reshape(z.shape)
        rise = loss_of(kind, z + step, y, w, taught) - loss_of(kind, z - step, y, w, taught)
        assert slopes[i, p] / w.sum() == pytest.approx(rise / 2e-6, abs=1e-9)


def problem(kind: str):
    config = dataclasses.replace(
        CONFIG, model=MODELS[kind], loss=kind, numeric_embedding="linear", clip_norm=1.0
    )
    if kind == "tri_bce":
        options = ("exponential_layers=1", "linear_layers=1")
        return dataclasses.replace(config, model_options=options, learning_rate=0.02)
    return dataclasses.replace(config, normalization="batch", dropout=0.2)


@pytest.mark.thorough  # by default one of groups, in `test_ranking_losses.py`
@pytest.mark.parametrize("kind", ["self_distillation", "tri_bce"])
def test_steps_on_meshes(kind: str):
    config = problem(kind)
    batch = TrainBatches(examples(256), config.batch_size, seed=0)[0]
    batch = batch._replace(sample_weights=np.linspace(0.5, 2, len(batch.labels), dtype="f4"))
    found = []
    for mesh in ("1x1", "2x4"):
        learner = make_learner(config, make_mesh(mesh))
        state, losses = learner.init(0), []
        step: Any = make_train_step(learner, with_logits=True)
        for _ in range(3):
            state, loss, logits = step(state, learner.put(batch))
            losses += [loss, logits]
        found.append([*losses, *jax.tree.leaves(state.params)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    assert found[0][4] < found[0][0]


def test_collectives_are_planned():
    config = dataclasses.replace(problem("tri_bce"), kernels="jax")
    learner = make_learner(config, make_mesh("2x4"))
    compiled = compile_step(learner, config.batch_size, config.dense_features)
    planned, found = Counter(), Counter()
    for each in planned_collectives(learner, config.batch_size):
        planned[each.kind] += each.nbytes
    for kind, nbytes in compiled_collectives(compiled):
        found[kind] += nbytes
    assert found == planned


def test_refused_and_corrected():
    config = problem("tri_bce")
    for changes, message in (
        ({"model": "dlrm"}, "loss: tri_bce needs a model of two or more members.* has none"),
        ({"accumulation_steps": 2}, "accumulation_steps: expected 1 for a loss that needs all"),
        ({"class_weights": (1.0, 2.0)}, "class_weights: expected 1,1 for loss=tri_bce"),
    ):
        with pytest.raises(UserError, match=message):
            make_learner(dataclasses.replace(config, **changes), make_mesh("1x1"))
    alone = dataclasses.replace(problem("self_distillation"), model_options=("blocks=1",))
    with pytest.raises(UserError, match=r"self_distillation needs .* this one has 1"):
        make_learner(alone, make_mesh("1x1"))
    with pytest.raises(UserError, match="needs a model of two or more members"):
        check_config(dataclasses.replace(config, model="dlrm"), make_mesh("1x1"))
    assert why_uncorrected(config) is None
