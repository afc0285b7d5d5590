"""A model of your own in Flax NNX, with sharded tables and `nnx.Optimizer`.

    python -m examples.own_model_nnx

It trains on eight emulated devices and prints its accuracy.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dlrm_jax.embedding import EmbeddingCollection, RowWiseAdagrad
from dlrm_jax.mesh import batch_sharding, emulate_devices, make_mesh
from examples.clicks import DIM, FEATURES, LOOKUPS, TABLES, clicks


class Tower(nnx.Module):
    """An MLP on the pooled vectors of a user, a history and an item."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(3 * DIM, 32, rngs=rngs)
        self.logit = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, pooled: dict[str, jax.Array]) -> jax.Array:
        """Returns logits [B]."""
        x = jnp.concatenate([pooled["user"], pooled["seen"], pooled["item"]], axis=1)
        return self.logit(nnx.relu(self.hidden(x)))[:, 0]


def loss_fn(pooled: dict[str, jax.Array], tower: Tower, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of a batch."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(tower(pooled), labels))


def main() -> None:
    """Tables, model, training."""
    emulate_devices(8)  # where there are fewer
    mesh = make_mesh("2x4")
    collection = EmbeddingCollection(TABLES, FEATURES, LOOKUPS, mesh, RowWiseAdagrad(0.1))
    tower = Tower(nnx.Rngs(0))
    optimizer = nnx.Optimizer(tower, optax.adam(3e-3), wrt=nnx.Param)
    # On every device from the start; otherwise the second step is compiled anew.
    for module in (tower, optimizer):
        replicated = jax.NamedSharding(mesh, jax.P())
        nnx.update(module, jax.device_put(nnx.state(module), replicated))

    @functools.partial(nnx.jit, donate_argnames="state")
    def step(state, tower, optimizer, ids, labels, count):
        value_and_grad = collection.value_and_grad(loss_fn, transform=nnx.value_and_grad)
        loss, grads, rows = value_and_grad(state, ids, tower, labels)
        optimizer.update(tower, grads)
        return collection.apply(state, rows, count), loss

    state = collection.init(seed=0)
    for count in range(200):
        ids, labels = clicks(1024, seed=count)
        labels = jax.device_put(labels, batch_sharding(mesh))
        state, loss = step(state, tower, optimizer, collection.put(ids), labels, count)
        loss = float(loss)  # on emulated devices, read a result before the next step
        if count % 40 == 0:
            print(f"step {count}: loss {loss:.4f}")

    @nnx.jit
    def predict(state, tower, ids):
        pooled, _ = collection.lookup(state, ids)
        return jax.nn.sigmoid(tower(pooled))

    ids, labels = clicks(1024, seed=1000)
    right = (predict(state, tower, collection.put(ids)) > 0.5) == (labels > 0.5)
    print(f"accuracy {right.mean():.3f}, always saying yes {labels.mean():.3f}")


if __name__ == "__main__":
    main()
