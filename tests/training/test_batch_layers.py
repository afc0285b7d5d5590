"""Layers that use the batch: statistics of all its samples, masks that belong to samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from normalized import batches, begin
from saved_run import CONFIG
from setups import train

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import BATCH, make_mesh
from dlrm_jax.models.fields import Model
from dlrm_jax.training.batch_layers import use_batch_layers
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner


class Observed(Model):
    """Statistics and noise of the user's own, on each device of its own samples."""

    def __init__(self, dense_features, fields, *, rngs: nnx.Rngs):
        self.names = tuple(field.name for field in fields)
        self.mean = nnx.BatchStat(jnp.zeros(dense_features))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.rngs = rngs

    def __call__(self, dense, vectors):
        self.mean[...] = 0.5 * self.mean[...] + 0.5 * dense.mean(0)
        self.calls[...] += 1
        noise = jax.random.normal(self.rngs.noise(), (len(dense),))
        return sum(vectors[name][:, 0] for name in self.names) + 0 * noise


def test_what_a_model_computes_of_its_own_samples():
    for mesh in ("1x1", "2x4"):
        state, losses = train(*begin(mesh, model=f"{__name__}:Observed"), batches(), 2)
        mean = np.zeros(3)
        for batch in batches(2):
            mean = 0.5 * mean + 0.5 * np.asarray(batch.dense, "f8").mean(0)
        statistics = state.model_state["statistics"]
        for shard in statistics["mean"].addressable_shards:
            np.testing.assert_allclose(shard.data, mean, rtol=1e-5, atol=1e-7)
        assert int(statistics["calls"]) == 2
        assert np.isfinite(losses).all()


class Drawing(nnx.Module):
    def __init__(self, broadcast_dims: tuple[int, ...] = ()):
        rngs = nnx.Rngs(0)
        self.dropout = nnx.Dropout(0.25, broadcast_dims=broadcast_dims, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        kept = self.dropout(x)
        at_call = self.dropout(x, rngs=self.rngs)
        return kept, at_call, jax.random.normal(self.rngs.noise(), (len(x),))


def drawn(mesh: str, **options: Any) -> list[np.ndarray]:
    model = Drawing(**options)
    use_batch_layers(model)
    graph, state = nnx.split(model)
    arrays = nnx.to_pure_dict(state)
    run = jax.shard_map(
        lambda x: nnx.merge(graph, arrays)(x),
        mesh=make_mesh(mesh),
        in_specs=BATCH,
        out_specs=BATCH,
        check_vma=False,
    )
    return [np.array(x) for x in jax.jit(run)(jnp.ones((64, 40)))]


def test_masks_belong_to_samples_and_not_to_devices():
    alone = drawn("1x1")
    for mask in alone[:2]:
        assert set(np.unique(mask)) == {0, np.float32(1 / 0.75)}
        assert (mask > 0).mean() == pytest.approx(0.75, abs=0.05)
        assert len({row.tobytes() for row in mask}) == 64, "some samples have one mask"
    assert np.any(alone[0] != alone[1]), "each call draws anew"
    for mesh in ("2x4", "1x8"):
        split = drawn(mesh)
        np.testing.assert_array_equal(split[0], alone[0])
        np.testing.assert_array_equal(split[1], alone[1])
        assert len(np.unique(split[2])) == 64, "other draws differ from device to device"
    (of_all, *_) = drawn("2x4", broadcast_dims=(0,))
    assert len({row.tobytes() for row in of_all}) == 1
    (of_rows, *_) = drawn("2x4", broadcast_dims=(-1,))
    assert all(len(np.unique(row)) == 1 for row in of_rows), "the last axis shares a mask"


def test_keys_of_another_kind_are_refused():
    def make(rngs: nnx.Rngs) -> nnx.Module:
        del rngs
        return nnx.Dropout(0.5, rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))

    learner = make_learner(CONFIG, make_mesh("1x1"))
    with pytest.raises(UserError, match=r"random keys of key<rbg>, expected key<fry>"):
        Learner(learner.collection, make, learner.dense_optimizer)
