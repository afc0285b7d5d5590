"""Losses and gradients of pooled vectors and rows, under NNX, linen and plain JAX."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowOptimizer,
    RowWiseAdagrad,
    Table,
)
from dlrm_jax.mesh import make_mesh

TABLES = [Table("users", 40, 4), Table("items", 30, 4)]
FEATURES = [Feature("user"), Feature("history", 3)]
LOOKUPS = [Lookup("user", "user", "users"), Lookup("taste", "history", "items", "mean")]
B = 16


@functools.cache
def make_collection(mesh="2x4", optimizer: RowOptimizer = RowWiseAdagrad(0.1)):  # noqa: B008
    return EmbeddingCollection(TABLES, FEATURES, LOOKUPS, make_mesh(mesh), optimizer)


def start(collection):
    """A state of drawn tables."""
    rng = np.random.default_rng(0)
    drawn = {t.name: rng.uniform(-0.2, 0.2, (t.rows, t.dim)).astype("f4") for t in TABLES}
    return collection.from_arrays(lambda table: {"table": drawn[table.name]}, 0)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 30, (B, 4)).astype(np.int32)
    return ids, rng.integers(0, 2, B).astype(np.float32)


def features_of(pooled):
    return jnp.concatenate([pooled["user"], pooled["taste"]], axis=1)


def bce(logits, labels):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))


def arrays_of(collection, state):
    return {
        f"{table.name}/{key}": np.asarray(array)
        for table, key, array in collection.iter_arrays(state)
    }


def loss_fn(pooled, params, labels):
    return bce(features_of(pooled) @ params, labels)


@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_it_is_lookup_and_update(mesh):
    collection = make_collection(mesh)
    ids, labels = make_batch()
    params = jnp.linspace(-1, 1, 8)

    @jax.jit
    def short(state, ids, params, labels):
        loss, grads, rows = collection.value_and_grad(loss_fn)(state, ids, params, labels)
        return loss, grads, collection.apply(state, rows, 0)

    @jax.jit
    def long(state, ids, params, labels):
        pooled, residuals = collection.lookup(state, ids)
        loss, (cotangents, grads) = jax.value_and_grad(loss_fn, argnums=(0, 1))(
            pooled, params, labels
        )
        return loss, grads, collection.update(state, residuals, cotangents, 0)

    state = start(collection)
    one, other = (step(state, ids, params, labels) for step in (short, long))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    new, expected = (arrays_of(collection, x) for x in (one[2], other[2]))
    for name, array in expected.items():
        np.testing.assert_array_equal(new[name], array, err_msg=name)
    assert any(np.any(new[name] != x) for name, x in arrays_of(collection, state).items())


def test_argnums_aux_and_weights():
    collection = make_collection("1x1", SGD(1.0))
    ids, labels = make_batch()
    weights = np.full(ids.shape, 0.5, np.float32)

    def with_aux(pooled, scale, shift):
        logits = jnp.sum(features_of(pooled), 1) * scale + shift
        return bce(logits, labels), logits

    @jax.jit
    def run(state, ids, weights):
        both = collection.value_and_grad(with_aux, argnums=(0, 1), has_aux=True)
        return both(state, ids, 2.0, 0.5, id_weights=weights)

    state = start(collection)
    (loss, logits), grads, rows = run(state, ids, weights)
    pooled, _ = jax.jit(collection.lookup)(state, ids, weights)
    expected = jax.grad(lambda a, b: with_aux(pooled, a, b)[0], argnums=(0, 1))(2.0, 0.5)
    np.testing.assert_allclose(grads, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, bce(logits, labels), rtol=1e-6)
    assert rows.blocks.keys() == collection.state_specs().tables.keys()


def test_a_loss_of_pooled_vectors_alone():
    collection = make_collection("1x1")
    ids, _ = make_batch()
    run = jax.jit(collection.value_and_grad(lambda pooled: jnp.sum(features_of(pooled) ** 2)))
    loss, grads, _ = run(start(collection), ids)
    assert float(loss) > 0
    assert grads == ()


def trained(step, *state):
    ids, labels = make_batch()
    losses = []
    for count in range(12):
        *state, loss = step(*state, ids, labels, count)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_an_nnx_model_with_its_optimizer():
    collection = make_collection()
    rngs = nnx.Rngs(0)
    hidden, logit = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
    dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(1))
    model = nnx.Sequential(hidden, nnx.relu, dropout, logit)
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)

    def loss_fn(pooled, model, labels):
        return bce(model(features_of(pooled))[:, 0], labels)

    @nnx.jit(donate_argnames="state")
    def step(model, optimizer, state, ids, labels, count):
        run = collection.value_and_grad(loss_fn, transform=nnx.value_and_grad)
        loss, grads, rows = run(state, ids, model, labels)
        optimizer.update(model, grads)
        return collection.apply(state, rows, count), loss

    state, losses = start(collection), []
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    ids, labels = make_batch()
    for count in range(12):
        state, loss = step(model, optimizer, state, ids, labels, count)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert all(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    counts = nnx.to_pure_dict(nnx.state(model, nnx.RngCount))  # of the key of dropout
    assert jax.tree.leaves(counts) == [12]


def test_dropout_cannot_be_differentiated_by():
    graph, params = nnx.split(nnx.Dropout(0.1, rngs=nnx.Rngs(1)))

    def loss_fn(params):
        return nnx.merge(graph, params)(jnp.ones((2, 2))).sum()

    with pytest.raises(TypeError, match=r"real- or complex-valued inputs .* got uint32"):
        jax.grad(loss_fn)(params)


def test_a_linen_model():
    collection = make_collection()
    model, optimizer = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)]), optax.adam(0.05)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8)))

    def loss_fn(pooled, params, labels):
        logits: Any = model.apply(params, features_of(pooled))
        return bce(logits[:, 0], labels)

    @functools.partial(jax.jit, donate_argnames=("state", "params", "opt_state"))
    def step(state, params, opt_state, ids, labels, count):
        loss, grads, rows = collection.value_and_grad(loss_fn)(state, ids, params, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return collection.apply(state, rows, count), params, opt_state, loss

    trained(step, start(collection), params, optimizer.init(params))


def test_negative_argnums_count_from_the_last_argument():
    collection = make_collection("1x1")
    ids, labels = make_batch()
    argnums = [-1, -2, (-1, 0), 1, 0, (1, 0)]

    @jax.jit
    def gradients(*args):
        return [collection.value_and_grad(loss_fn, numbers)(*args)[1] for numbers in argnums]

    found = gradients(start(collection), ids, np.linspace(-1, 1, 8, dtype="f4"), labels)
    jax.tree.map(np.testing.assert_array_equal, found[:3], found[3:])
    assert np.any(found[0] != 0)
    assert np.any(found[1] != 0)
