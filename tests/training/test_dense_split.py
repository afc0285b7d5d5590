"""The split of dense arrays: the same blocks as those of JAX's shardings, or the array is whole."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dlrm_jax.config import Config
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import DATA, MODEL, make_mesh
from dlrm_jax.training import dense_split
from dlrm_jax.training.build import make_learner


def axes_of(mesh: str) -> MeshAxes:
    return MeshAxes(make_mesh(mesh), (DATA,), MODEL)


SPLIT = [
    ("2x4", (16,), PartitionSpec((DATA, MODEL))),
    ("2x4", (8, 3), PartitionSpec((DATA, MODEL), None)),
    ("2x4", (3, 16), PartitionSpec(None, (DATA, MODEL))),
    ("2x4", (6, 4), PartitionSpec(DATA, MODEL)),
    ("2x4", (4, 3, 6), PartitionSpec(MODEL, None, DATA)),
    ("8x1", (5, 8), PartitionSpec(None, DATA)),
    ("1x8", (8, 8), PartitionSpec(MODEL, None)),
    ("1x6", (3, 6), PartitionSpec(None, MODEL)),
]


@pytest.mark.parametrize(("mesh", "shape", "spec"), SPLIT)
def test_blocks_are_the_parts_of_the_devices(mesh, shape, spec):
    axes = axes_of(mesh)
    assert dense_split.spec(axes, shape) == spec
    x = jnp.arange(np.prod(shape)).reshape(shape)
    blocks = dense_split.blocks(axes, x)
    by_device = {s.device: s.data for s in placed(axes, x).addressable_shards}
    for device, block in zip(axes.mesh.devices.flat, blocks, strict=True):
        assert by_device[device].shape == dense_split.block_shape(axes, shape)
        np.testing.assert_array_equal(np.ravel(by_device[device]), block)
    np.testing.assert_array_equal(dense_split.joined(axes, blocks, shape), x)


def placed(axes: MeshAxes, x: jax.Array) -> jax.Array:
    return jax.device_put(x, dense_split.sharding(axes, x.shape))


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        ("2x4", ()),
        ("2x4", (1,)),
        ("2x4", (12,)),
        ("2x4", (3, 4)),
        ("2x4", (0, 8)),
        ("1x1", (8, 8)),
    ],
)
def test_other_arrays_are_whole(mesh, shape):
    axes = axes_of(mesh)
    assert not dense_split.is_split(axes, shape)
    assert dense_split.spec(axes, shape) == PartitionSpec()
    assert placed(axes, jnp.zeros(shape)).is_fully_replicated


def test_a_model_of_which_nothing_can_be_split_is_refused():
    config = dataclasses.replace(Config(), shard_dense_optimizer=True)
    odd = dataclasses.replace(config, embedding_dim=5, bottom_mlp=(5,), top_mlp=(9, 1))
    message = (
        r"^shard_dense_optimizer: expected layers .* 8 devices divide, .* \(13, 5\).*, or leave"
    )
    with pytest.raises(UserError, match=message):
        make_learner(odd, make_mesh("1x8"))
    make_learner(dataclasses.replace(odd, top_mlp=(16, 1)), make_mesh("1x8"))
    make_learner(odd, make_mesh("1x1"))
