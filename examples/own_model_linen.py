"""A model of your own in Flax Linen, with sharded tables and optax.

    python -m examples.own_model_linen

It trains on eight emulated devices and prints its accuracy.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen

from dlrm_jax.embedding import EmbeddingCollection, RowWiseAdagrad
from dlrm_jax.mesh import batch_sharding, emulate_devices, make_mesh
from examples.clicks import FEATURES, LOOKUPS, TABLES, clicks


class Tower(linen.Module):
    """An MLP on the pooled vectors of a user, a history and an item."""

    @linen.compact
    def __call__(self, pooled: dict[str, jax.Array]) -> jax.Array:
        """Returns logits [B]."""
        x = jnp.concatenate([pooled["user"], pooled["seen"], pooled["item"]], axis=1)
        return linen.Dense(1)(linen.relu(linen.Dense(32)(x)))[:, 0]


def main() -> None:
    """Tables, model, training."""
    emulate_devices(8)  # where there are fewer
    mesh = make_mesh("2x4")
    collection = EmbeddingCollection(TABLES, FEATURES, LOOKUPS, mesh, RowWiseAdagrad(0.1))
    tower, optimizer = Tower(), optax.adam(3e-3)

    def logits_of(pooled, params) -> Any:
        return tower.apply(params, pooled)

    def loss_fn(pooled, params, labels):
        losses = optax.sigmoid_binary_cross_entropy(logits_of(pooled, params), labels)
        return jnp.mean(losses)

    @functools.partial(jax.jit, donate_argnames=("state", "params", "opt_state"))
    def step(state, params, opt_state, ids, labels, count):
        loss, grads, rows = collection.value_and_grad(loss_fn)(state, ids, params, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return collection.apply(state, rows, count), params, opt_state, loss

    @jax.jit
    def predict(state, params, ids):
        pooled, _ = collection.lookup(state, ids)
        return jax.nn.sigmoid(logits_of(pooled, params))

    state = collection.init(seed=0)
    ids, _ = clicks(8, seed=0)
    pooled, _ = jax.jit(collection.lookup)(state, collection.put(ids))
    params = tower.init(jax.random.key(0), pooled)
    # On every device from the start; otherwise the second step is compiled anew.
    replicated = jax.NamedSharding(mesh, jax.P())
    params, opt_state = jax.device_put((params, optimizer.init(params)), replicated)
    for count in range(200):
        ids, labels = clicks(1024, seed=count)
        labels = jax.device_put(labels, batch_sharding(mesh))
        state, params, opt_state, loss = step(
            state, params, opt_state, collection.put(ids), labels, count
        )
        loss = float(loss)  # on emulated devices, read a result before the next step
        if count % 40 == 0:
            print(f"step {count}: loss {loss:.4f}")

    ids, labels = clicks(1024, seed=1000)
    right = (predict(state, params, collection.put(ids)) > 0.5) == (labels > 0.5)
    print(f"accuracy {right.mean():.3f}, always saying yes {labels.mean():.3f}")


if __name__ == "__main__":
    main()
