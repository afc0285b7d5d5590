"""Meshes of the caller's own: names, further axes, Explicit axes, maps of the caller's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from small_collection import FEATURES, LOOKUPS, PLANS, TABLES, random_arrays, random_batch

from dlrm_jax.embedding import SGD, EmbeddingCollection, automatic_plan
from dlrm_jax.errors import UserError

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def mesh_of(shape, names, axis_type=AUTO):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, names, axis_types=(axis_type,) * len(names))


def collection_on(mesh, plan="mixed", **axes):
    shards = mesh.shape[axes.get("model_axis", "model")]
    chosen = dict(zip([t.name for t in TABLES], PLANS[plan], strict=True))
    plan = automatic_plan(TABLES, shards, chosen)
    return EmbeddingCollection(TABLES, FEATURES, LOOKUPS, mesh, SGD(1.0), plan, **axes)


def one_step(collection, state, ids, weights):
    """The pooled vectors, and the tables after a step with a loss of Σ v² / 2."""

    @jax.jit
    def step(state, ids, weights):
        pooled, residuals = collection.lookup(state, ids, weights)
        return pooled, collection.update(state, residuals, pooled, 3)

    pooled, state = step(state, ids, weights)
    tables = {
        f"{table.name}/{key}": np.asarray(array)
        for table, key, array in collection.iter_arrays(state)
    }
    return jax.tree.map(np.asarray, pooled), tables


def results(collection):
    arrays = random_arrays()
    state = collection.from_arrays(lambda table: arrays[table.name], 0)
    return one_step(collection, state, *random_batch())


@pytest.fixture(scope="module")
def expected():
    return results(collection_on(mesh_of((1, 1), ("data", "model")), "row_wise"))


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, array in other.items():
            np.testing.assert_allclose(one[name], array, rtol=2e-5, atol=1e-5, err_msg=name)


MESHES = {
    "other names": (
        ((2, 4), ("replica", "table")),
        {"data_axes": "replica", "model_axis": "table"},
    ),
    "a tensor axis": (((2, 2, 2), ("data", "model", "tensor")), {}),
    "a tensor axis before": (((2, 1, 4), ("tensor", "data", "model")), {}),
    "two data axes": (
        ((2, 2, 2), ("pod", "data", "model")),
        {"data_axes": ("pod", "data")},
    ),
    "one axis": (((4,), ("x",)), {"data_axes": (), "model_axis": "x"}),
}


# Explicit axes are harder; Auto ones alone are under `set_mesh`, too.
OFTEN = [("two data axes", EXPLICIT)]


@pytest.mark.parametrize(
    ("name", "axis_type"),
    [
        pytest.param(*case, marks=() if case in OFTEN else pytest.mark.thorough)
        for case in itertools.product(MESHES, (EXPLICIT, AUTO))
    ],
)
def test_results_are_those_of_one_device(name, axis_type, expected):
    (shape, names), axes = MESHES[name]
    mesh = mesh_of(shape, names, axis_type)
    plan = "column_wise" if name == "a tensor axis" else "mixed"
    assert_close(results(collection_on(mesh, plan, **axes)), expected)


@pytest.mark.parametrize(
    "axis_type",
    [AUTO, pytest.param(EXPLICIT, marks=pytest.mark.thorough)],
    ids=["auto", "explicit"],
)
def test_under_set_mesh(axis_type, expected):
    mesh = mesh_of((2, 4), ("data", "model"), axis_type)
    with jax.set_mesh(mesh):
        assert_close(results(collection_on(mesh)), expected)


def test_explicit_arrays_say_how_they_are_split():
    mesh = mesh_of((2, 4), ("data", "model"), EXPLICIT)
    collection = collection_on(mesh)
    state, (ids, _) = collection.init(0), random_batch()
    seen = []

    @jax.jit
    def step(state, ids):
        pooled, residuals = collection.lookup(state, ids)
        seen.append(jax.typeof(pooled["a"]).sharding.spec)
        loss = jax.tree.map(lambda v: 2 * v, pooled)
        return collection.update(state, residuals, loss, 0)

    new = step(state, ids)
    assert seen == [PartitionSpec(("data", "model"), None)]
    before = jax.tree.map(lambda x: x.sharding, state)
    assert jax.tree.map(lambda x: x.sharding, new) == before
    specs = collection.state_specs()
    assert before == jax.tree.map(lambda x: x.sharding, specs)


def test_inside_a_map_of_the_callers(expected):
    mesh = mesh_of((2, 4), ("data", "model"))
    collection = collection_on(mesh)
    device = collection.per_device
    batch = device.axes.batch

    def run(state, ids, weights):
        pooled, residuals = device.lookup(state, ids, weights)
        return pooled, device.update(state, residuals, pooled, 3)

    step = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(device.state_specs, batch, batch),
            out_specs=(batch, device.state_specs),
            check_vma=False,
        )
    )
    arrays = random_arrays()
    state = collection.from_arrays(lambda table: arrays[table.name], 0)
    pooled, state = step(state, *random_batch())
    tables = {
        f"{table.name}/{key}": np.asarray(array)
        for table, key, array in collection.iter_arrays(state)
    }
    assert_close((jax.tree.map(np.asarray, pooled), tables), expected)


@pytest.mark.thorough
def test_tensor_parallel_dense_part():
    """The axis that the tables don't use splits the dense model's layers."""
    mesh = mesh_of((2, 2, 2), ("data", "model", "tensor"))
    collection = collection_on(mesh)
    ids, _ = random_batch()
    kernel = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, PartitionSpec(None, "tensor")))

    @jax.jit
    def step(state, kernel, ids):
        def loss_fn(pooled, kernel):
            return jnp.sum(jnp.tanh(pooled["a"] @ kernel) ** 2)

        loss, grads, rows = collection.value_and_grad(loss_fn)(state, ids, kernel)
        return loss, grads, collection.apply(state, rows, 0)

    _, grads, _ = step(collection.init(0), kernel, ids)
    assert grads.sharding.spec == PartitionSpec(None, "tensor")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"model_axis": "x"}, r"expected the axes data and x, got data, model"),
        ({"data_axes": "model"}, r"expected the axes model and model"),
    ],
)
def test_wrong_axes_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        EmbeddingCollection(
            TABLES, FEATURES, LOOKUPS, mesh_of((2, 4), ("data", "model")), SGD(1.0), **axes
        )


def test_mixed_axis_types_are_refused():
    devices = np.array(jax.devices()).reshape(2, 4)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AUTO, EXPLICIT))
    with pytest.raises(UserError, match="data is Auto, model is Explicit"):
        EmbeddingCollection(TABLES, FEATURES, LOOKUPS, mesh, SGD(1.0))
