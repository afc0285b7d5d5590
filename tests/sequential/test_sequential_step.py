"""The step of sequences against a float64 oracle, on several meshes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dlrm_jax.attention.jagged import sequences_of
from dlrm_jax.mesh import as_mesh
from dlrm_jax.sequential import softmax
from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.questions import split_of
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.softmax import Candidates, softmax_loss
from dlrm_jax.sequential.step import make_sequential_step
from experiments.next_item.planted_order import generate, planted_order

ITEMS, STEPS = 30, 3
LOG = generate(planted_order(ITEMS, 0), users=24, longest=40, seed=1)
SPLIT = split_of(LOG, "leave_one_out")


def settings_of(encoder: str, negatives: int | str, dropout: float = 0.0) -> SequentialSettings:
    given: Any = {"sampler": negatives} if isinstance(negatives, str) else {"negatives": negatives}
    return SequentialSettings(
        encoder=encoder,  # pyright: ignore[reportArgumentType]
        **given,
        width=4, layers=1, max_length=30, batch_size=8, dropout=dropout,
        learning_rate=0.01, decay_start=1, decay_steps=3, beta2=0.98, at=(5,), metric="ndcg@5",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def trained(settings: SequentialSettings, mesh: str):
    """Losses of some steps, and the items' vectors after them."""
    devices = as_mesh(mesh)
    batches = SequenceTraining(LOG, SPLIT.train, settings, devices.size)
    learner = learner_for(ITEMS, batches.shapes, settings, devices, "float64")
    state = wide(learner.init(0))
    step, losses = make_sequential_step(learner, settings), []
    first = learner, state, batches
    start = jax.tree.map(np.asarray, (state.params, state.model_state)), rows_of(learner, state)
    for number in range(STEPS):
        state, loss = step(state, learner.put(batches[number]))
        losses.append(float(loss))
    return np.asarray(losses), rows_of(learner, state), start, first


def wide(state):
    """A state with all that is floating in float64."""

    def cast(x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.device_put(x.astype("float64"), x.sharding) if is_float else x

    return dataclasses.replace(
        state,
        params=jax.tree.map(cast, state.params),
        optimizer=jax.tree.map(cast, state.optimizer),
    )


def rows_of(learner, state) -> np.ndarray:
    numbers = np.arange(ITEMS, dtype=np.int32)
    return np.asarray(learner.collection.read_rows(state.embedding, {"items": numbers})["items"])


def oracle(settings: SequentialSettings):
    """The same on one device, by dense tables and a matrix of all scores, with optax's Adam.

    In the table it moves touched rows alone, and their moments.
    """
    *_, ((params, model_state), table), (learner, _, batches) = trained(settings, "1x1")
    optimizer: Any = optax.adam(settings.rate, b2=settings.beta2)
    variables: Any = jax.tree.map(jnp.asarray, {"params": params, "table": table})
    state: Any = optimizer.init(variables)
    losses = []

    def loss_of(variables, batch):
        items, targets = batch.items.ravel(), batch.targets.ravel()
        flat = (x.ravel() for x in (batch.times, batch.next_times, batch.numbers))
        sequences = sequences_of(jnp.asarray(batch.lengths), items.size, *map(jnp.asarray, flat))
        model = learner.model(variables["params"], model_state)
        there = items >= 0
        tokens = jnp.where(there[:, None], variables["table"][items], 0)
        found, vectors = model.histories(tokens, sequences), model.items(variables["table"])
        scores = found @ vectors.T / settings.temperature
        own = jnp.take_along_axis(scores, jnp.maximum(targets, 0)[:, None], axis=1)
        if settings.is_sampled:
            drawn = batch.candidates.ravel()
            present = drawn >= 0
            logits = scores[:, drawn] - batch.log_q.ravel().astype("float64")
            logits = jnp.where(present & (drawn != targets[:, None]), logits, -jnp.inf)
            scores = jnp.concatenate([own, logits], axis=1)
        losses = jax.nn.logsumexp(scores, axis=1) - own[:, 0]
        return jnp.sum(jnp.where(there, losses, 0)) / there.sum()

    @jax.jit
    def step(variables, state, batch, touched):
        loss, grads = jax.value_and_grad(loss_of)(variables, batch)
        updates, (after, *rest) = optimizer.update(grads, state)

        def kept(new, old):
            return new | {"table": jnp.where(touched, new["table"], old["table"])}

        variables = kept(optax.apply_updates(variables, updates), variables)
        moments = {x: kept(getattr(after, x), getattr(state[0], x)) for x in ("mu", "nu")}
        return variables, (after._replace(**moments), *rest), loss

    for number in range(STEPS):
        batch = batches[number]
        looked_up = [x.ravel() for x in (batch.items, batch.targets, batch.candidates)]
        touched = np.isin(np.arange(ITEMS), np.concatenate(looked_up))[:, None]
        variables, state, loss = step(variables, state, batch, touched)
        losses.append(float(loss))
    return np.asarray(losses), np.asarray(variables["table"])


@pytest.mark.parametrize(
    ("encoder", "negatives", "mesh"),
    [
        # The others take long to compile; `test_request_step.py` has HSTU on a mesh.
        ("bag", 0, "2x4"),
        ("bag", "in_batch", "4x2"),
        *(
            pytest.param(encoder, negatives, mesh, marks=pytest.mark.thorough)
            for encoder in ("hstu", "sasrec", "bag")
            for negatives in (0, 20, "in_batch")
            for mesh in ("1x1", "2x4", "4x2", "1x8", "8x1")
            if (encoder, negatives, mesh) not in {("bag", 0, "2x4"), ("bag", "in_batch", "4x2")}
        ),
    ],
)
def test_the_step_is_the_oracles(encoder: str, negatives: int | str, mesh: str):
    settings = settings_of(encoder, negatives)
    losses, rows, *_ = trained(settings, mesh)
    expected, table = oracle(settings)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(rows, table, rtol=1e-9, atol=1e-9)


def test_scores_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch):
    rng, mesh = np.random.default_rng(0), as_mesh("2x2")
    tokens, items = (jnp.asarray(rng.normal(size=(count, 3))) for count in (24, 8))
    targets, split = jnp.asarray(rng.integers(0, 8, 24), "int32"), PartitionSpec(mesh.axis_names)

    def loss(tokens, items, targets):
        first = 2 * jax.lax.axis_index(mesh.axis_names)
        candidates = Candidates(items, jnp.arange(2) + first, jnp.zeros(2))
        return softmax_loss(tokens, targets, None, candidates, 0.5, mesh.axis_names)

    def found():
        per_device = jax.shard_map(
            loss, mesh=mesh, in_specs=(split,) * 3, out_specs=split, check_vma=False
        )
        of = jax.value_and_grad(lambda x, y: per_device(x, y, targets).mean(), (0, 1))
        return jax.jit(of)(tokens, items)

    def expected(tokens, items):
        logits = jax.nn.log_softmax(tokens @ items.T / 0.5)
        return -jnp.take_along_axis(logits, targets[:, None], axis=1).mean()

    wanted = jax.value_and_grad(expected, (0, 1))(tokens, items)
    for size in (softmax._CHUNK, 10):  # 24 tokens in a chunk, and 5 at most
        monkeypatch.setattr(softmax, "_CHUNK", size)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), found(), wanted)


@pytest.mark.thorough
def test_dropout_is_the_same_on_every_mesh():
    settings = settings_of("sasrec", 0, dropout=0.5)
    losses, rows, *_ = trained(settings, "1x1")
    other, of_other, *_ = trained(settings, "2x4")
    np.testing.assert_allclose(losses, other, rtol=1e-9)
    np.testing.assert_allclose(rows, of_other, rtol=1e-9, atol=1e-9)
    without, *_ = trained(settings_of("sasrec", 0), "1x1")
    assert not np.allclose(losses, without, rtol=1e-3)
