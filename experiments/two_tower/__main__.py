"""Trains a two-tower retrieval model on the library's embedding tables.

    python -m experiments.two_tower --mesh=2x4

One tower makes a vector from a user's features, the other one from an item, and the score is their
product; both read items from the same table. It prints recall at k: the share of users with their
held-out item among the first k of all items that aren't known items of theirs. Beside it are the
recall of a ranking by popularity, and that of the planted taste that generates the data, which no
model can beat. At the end are the items nearest to the most popular ones, by number: generated
items have no names.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.flags import FLAGS, define_mesh, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.embedding import (
    EmbeddingCollection,
    EmbeddingState,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import batch_sharding, check_batch_size
from dlrm_jax.models.mlp import MLP
from dlrm_jax.signals import check
from dlrm_jax.text_table import text_table
from experiments.two_tower.planted_taste import GROUPS, Choices, generate
from experiments.two_tower.retrieval import Scores, in_batch_softmax, nearest, recall

KNOWN = 11  # known items of each user

define_mesh()
flags.DEFINE_integer("users", 20_000, "Users of the generated data; such as 5000.", 1)
flags.DEFINE_integer("items", 5000, "Items of the generated data; such as 1000.", KNOWN + 1)
flags.DEFINE_integer("batch_size", 1024, "Users of a step; such as 256.", 1)
flags.DEFINE_integer("steps", 500, "Steps of training; such as 1000.", 1)
flags.DEFINE_integer("seed", 0, "Seed of data and model; such as 1.", 0)
define_numbers("recall_at", (10, 100), "Values of k in recall at k; such as 5,10.", low=1)

DIM = 32
TEMPERATURE = 0.1
SHOWN, NEAREST = 3, 5  # items whose nearest ones are printed, and how many of these


def main() -> None:
    """Makes data, tables and towers, trains, and measures recall."""
    ranked = FLAGS.items - KNOWN
    if max(FLAGS.recall_at, default=0) > ranked:
        raise UserError(
            f"--recall_at: {max(FLAGS.recall_at)} is more than the {ranked} ranked items: "
            f"--items={FLAGS.items} without {KNOWN} known items"
        )
    mesh = start(FLAGS.mesh)
    check_batch_size(mesh, "--batch_size", FLAGS.batch_size)
    print(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")

    choices = generate(FLAGS.users, FLAGS.items, KNOWN, FLAGS.seed)
    collection = make_collection(FLAGS.items, mesh)
    print(collection.plan.describe(collection.tables.values()))
    graph, params = nnx.split(Towers(nnx.Rngs(FLAGS.seed)))
    optimizer = optax.adam(1e-3)
    step = make_step(collection, graph, optimizer, choices.popularity())
    encode = make_encode(collection, graph)

    # On every device from the start: otherwise the second step would be compiled again.
    everywhere = NamedSharding(mesh, PartitionSpec())
    dense = jax.device_put((jnp.zeros((), jnp.int32), params, optimizer.init(params)), everywhere)
    state = State(*dense, tables=collection.init(FLAGS.seed))
    rng = np.random.default_rng(FLAGS.seed)
    begun, loss = time.perf_counter(), np.nan
    for _ in range(FLAGS.steps):
        users = rng.integers(0, FLAGS.users, FLAGS.batch_size)
        ids = training_ids(choices.groups[users], choices.known[users], rng)
        state, loss = step(state, jax.device_put(ids, batch_sharding(mesh)))
        check()
        loss = float(loss)  # waits for the step: on emulated devices, two at the same time can hang
    print(f"loss {loss:.4f}, {time.perf_counter() - begun:.1f} s for {FLAGS.steps} steps")

    queries, items = encode_all(functools.partial(encode, state), choices, mesh, FLAGS.batch_size)
    rankings: dict[str, Scores] = {
        "model": lambda users: queries[users] @ items.T,
        "most popular": lambda users: np.tile(choices.popularity(), (len(users), 1)),
        "planted taste": choices.taste,
    }
    rows = []
    for name, scores in rankings.items():
        found = recall(scores, choices.known, choices.held_out, FLAGS.recall_at)
        rows.append([name, *(f"{share:.4f}" for share in found)])
    print(text_table(["recall at", *map(str, FLAGS.recall_at)], rows))
    popular = np.argsort(-choices.popularity())[:SHOWN]
    for item, others in zip(popular, nearest(items, popular, NEAREST), strict=True):
        print(f"nearest to item {item}: {', '.join(map(str, others))}")


# -- Tables, towers, one step ----------------------------------------------------------


def make_collection(items: int, mesh: Mesh) -> EmbeddingCollection:
    """Makes the tables; known items and the scored item are two features that read one table."""
    return EmbeddingCollection(
        [Table("items", items, DIM), Table("groups", GROUPS, DIM)],
        [Feature("group"), Feature("known", max_ids=KNOWN), Feature("item")],
        [
            Lookup("group", "group", "groups"),
            Lookup("known", "known", "items", pooling="mean"),
            Lookup("item", "item", "items"),
        ],
        mesh,
        RowWiseAdagrad(0.1),
    )


class Towers(nnx.Module):
    """Makes unit vectors [B, DIM] from the pooled vectors of a batch."""

    def __init__(self, rngs: nnx.Rngs):
        self.query_mlp = MLP((2 * DIM, 64, DIM), last_relu=False, rngs=rngs)
        self.item_mlp = MLP((DIM, 64, DIM), last_relu=False, rngs=rngs)

    def query(self, pooled: dict[str, Array]) -> Float[Array, "B d"]:
        """The vectors of users, from their groups and known items."""
        return _unit(self.query_mlp(jnp.concatenate([pooled["group"], pooled["known"]], axis=1)))

    def item(self, pooled: dict[str, Array]) -> Float[Array, "B d"]:
        """The vectors of items."""
        return _unit(self.item_mlp(pooled["item"]))


def _unit(x: Float[Array, "B d"]) -> Float[Array, "B d"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True) + 1e-12)


class State(NamedTuple):
    """The training state, a pytree."""

    step: Array
    params: Any
    optimizer: Any
    tables: EmbeddingState


def make_step(
    collection: EmbeddingCollection,
    graph: nnx.GraphDef[Towers],
    optimizer: optax.GradientTransformation,
    popularity: Float32[np.ndarray, " I"],
) -> Callable[[State, Int32[Array, "B C"]], tuple[State, Float[Array, ""]]]:
    """Makes one update of tables and towers; it also returns the loss before the update."""
    log_frequency = np.log(np.maximum(popularity, 1))

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: State, ids: Int32[Array, "B C"]) -> tuple[State, Float[Array, ""]]:
        item_ids = ids[:, -1]

        def loss_fn(pooled: dict[str, Array], params: Any) -> Float[Array, ""]:
            towers = nnx.merge(graph, params)
            scores = towers.query(pooled) @ towers.item(pooled).T / TEMPERATURE
            return in_batch_softmax(scores, item_ids, jnp.asarray(log_frequency)[item_ids])

        value_and_grad = collection.value_and_grad(loss_fn)
        loss, g, rows = value_and_grad(state.tables, ids, state.params)
        updates, optimizer_state = optimizer.update(g, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        tables = collection.apply(state.tables, rows, state.step)
        return State(state.step + 1, params, optimizer_state, tables), loss

    return step


def make_encode(
    collection: EmbeddingCollection, graph: nnx.GraphDef[Towers]
) -> Callable[[State, Int32[Array, "B C"]], tuple[Array, Array]]:
    """Makes the encoder of queries and items; vectors of absent ones are meaningless."""

    @jax.jit
    def encode(state: State, ids: Int32[Array, "B C"]) -> tuple[Array, Array]:
        towers = nnx.merge(graph, state.params)
        pooled, _ = collection.lookup(state.tables, ids)
        return towers.query(pooled), towers.item(pooled)

    return encode


# -- Ids: the columns of a user's group, the known items and the item to score ---------


def training_ids(
    groups: Int32[np.ndarray, " B"], known: Int32[np.ndarray, "B K"], rng: np.random.Generator
) -> Int32[np.ndarray, "B C"]:
    """Draws one known item of each user as the target; the others stay known."""
    chosen = rng.integers(0, KNOWN, (len(known), 1))
    item = np.take_along_axis(known, chosen, axis=1)
    others = known.copy()
    np.put_along_axis(others, chosen, -1, axis=1)
    return np.column_stack([groups, others, item])


def encode_all(
    encode: Callable[[Int32[Array, "B C"]], tuple[Array, Array]],
    choices: Choices,
    mesh: Mesh,
    batch_size: int,
) -> tuple[Float32[np.ndarray, "U d"], Float32[np.ndarray, "I d"]]:
    """The vectors of all users, with all their known items, and of all items."""

    def in_batches(ids: Int32[np.ndarray, "N C"], tower: int) -> Float32[np.ndarray, "N d"]:
        # Batches of one size, so that one program serves all; the last is padded.
        padded = np.pad(ids, ((0, -len(ids) % batch_size), (0, 0)), constant_values=-1)
        vectors = []
        for first in range(0, len(padded), batch_size):
            batch = jax.device_put(padded[first : first + batch_size], batch_sharding(mesh))
            vectors.append(np.asarray(encode(batch)[tower]))
        return np.concatenate(vectors)[: len(ids)]

    absent = np.full(len(choices.known), -1, np.int32)
    user_ids = np.column_stack([choices.groups, choices.known, absent])
    item_ids = np.full((len(choices.fame), user_ids.shape[1]), -1, np.int32)
    item_ids[:, -1] = np.arange(len(item_ids))
    return in_batches(user_ids, 0), in_batches(item_ids, 1)


if __name__ == "__main__":
    run(main)
