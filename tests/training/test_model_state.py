"""Models with batch statistics and random numbers: the same on every mesh, kept by checkpoints."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from saved_run import CONFIG, DATA, examples, save
from setups import step_of, train

from dlrm_jax import backend
from dlrm_jax.data.batches import Batch, TrainBatches
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import BATCH, make_mesh, put_whole
from dlrm_jax.models.fields import Model, concatenated, concatenated_width
from dlrm_jax.training.batch_layers import use_batch_layers
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.model import make_model
from dlrm_jax.training.step import make_predict
from dlrm_jax.training.tables import describe
from dlrm_jax.training.warm_start import warm_start

MESHES = ("1x1", "2x4", "1x8")
MOMENTUM = 0.9
MICRO_BATCHES = {"accumulation_steps": 2, "clip_norm": 0.1}


class Normalized(Model):
    """What a user writes: batch normalization, dropout, a hidden layer."""

    def __init__(self, dense_features, fields, *, rate: float = 0.5, rngs: nnx.Rngs):
        self.fields = tuple(fields)
        width = concatenated_width(dense_features, fields)
        self.norm = nnx.BatchNorm(width, momentum=MOMENTUM, rngs=rngs)
        self.hidden = nnx.Linear(width, 8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.output = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, dense, vectors):
        x = self.norm(concatenated(dense, vectors, self.fields))
        x = self.dropout(jax.nn.relu(self.hidden(x)))
        return self.output(x)[:, 0]


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


CHANGED = dataclasses.replace(CONFIG, model=f"{__name__}:Normalized", learning_rate=0.05)


def config(**changes: Any):
    return dataclasses.replace(CHANGED, **changes)


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Such models see all samples at once, however few make a chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "CPU", dataclasses.replace(backend.CPU, dense_chunk=4))
        yield


@functools.cache
def _begun(mesh: str, **changes: Any) -> tuple[Learner, TrainState, TrainState]:
    learner = make_learner(config(**changes), make_mesh(mesh))
    state = learner.init(0)
    return learner, jax.tree.map(np.array, state), jax.tree.map(lambda x: x.sharding, state)


def begin(mesh: str, **changes: Any) -> tuple[Learner, TrainState]:
    """A learner, which is made once, and a new copy of its first state."""
    learner, state, shardings = _begun(mesh, **changes)
    return learner, jax.device_put(jax.tree.map(np.copy, state), shardings)


def batches(count: int = 3) -> list[Batch]:
    drawn = TrainBatches(examples(512), CONFIG.batch_size, seed=0)
    return [drawn[i] for i in range(count)]


def inputs(learner: Learner, state: TrainState, batch: Batch) -> np.ndarray:
    """What the normalization gets, in float64."""
    found = [np.asarray(batch.dense, "f8")]
    ends = np.cumsum(CONFIG.table_bag_lengths)
    for table, arrays in learner.collection.to_arrays(state.embedding):
        place = CONFIG.table_names.index(table.name)
        bags = batch.ids[:, ends[place] - CONFIG.table_bag_lengths[place] : ends[place]]
        rows = np.asarray(arrays["table"], "f8")[bags]
        found.append(np.where(bags[..., None] >= 0, rows, 0).sum(1))
    return np.concatenate(found, axis=1)


def norm_of(state: TrainState) -> tuple[np.ndarray, np.ndarray]:
    norm = state.model_state["statistics"]["norm"]
    return np.array(norm["mean"]), np.array(norm["var"])


def numbers(tree: Any) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("changes", "meshes"),
    [
        ({}, MESHES),
        (MICRO_BATCHES, ("2x4", "2x2")),
        pytest.param(MICRO_BATCHES, MESHES, marks=pytest.mark.thorough),
    ],
)
def test_statistics_are_of_the_whole_batch_on_every_mesh(
    changes: dict[str, Any], meshes: tuple[str, ...]
):
    """Against NumPy; those of micro-batches, one after the other, are of each."""
    losses = {}
    for mesh in meshes:
        learner, state = begin(mesh, **changes)
        losses[mesh] = []
        width = len(norm_of(state)[0])
        mean, variance = np.zeros(width), np.ones(width)
        for batch in batches():
            for x in np.split(inputs(learner, state, batch), learner.accumulation_steps):
                mean = MOMENTUM * mean + (1 - MOMENTUM) * x.mean(0)
                variance = MOMENTUM * variance + (1 - MOMENTUM) * x.var(0)
            state, loss = train(learner, state, [batch], 1)
            losses[mesh] += loss.tolist()
            np.testing.assert_allclose(norm_of(state)[0], mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(norm_of(state)[1], variance, rtol=1e-5, atol=1e-6)
    first, *others = losses.values()
    assert np.ptp(first) > 1e-3
    for other in others:
        np.testing.assert_allclose(other, first, rtol=2e-5)


def test_training_goes_on_alike_on_every_mesh():
    """Gradients too: through the statistics, and with the same masks."""
    found = {}
    for mesh in MESHES:
        state, losses = train(*begin(mesh), batches(), 12)
        found[mesh] = losses, numbers(state.params)
    assert found["1x1"][0][-3:].mean() < found["1x1"][0][:3].mean()
    for mesh in MESHES[1:]:
        np.testing.assert_allclose(found[mesh][0], found["1x1"][0], rtol=1e-4)
        for x, wanted in zip(found[mesh][1], found["1x1"][1], strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-3, atol=1e-4)


def test_many_steps_are_one_compilation():
    learner, _ = begin("2x4")
    state, step = learner.init(0), step_of(learner)
    for batch in batches():
        state, _ = jax.block_until_ready(step(state, learner.put(batch)))
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    specs = learner.state_specs()
    assert jax.tree.structure(specs) == jax.tree.structure(state)
    for spec, x in zip(jax.tree.leaves(specs), jax.tree.leaves(state), strict=True):
        assert (spec.shape, spec.dtype) == (x.shape, x.dtype)


def test_samples_without_weight_count_in_the_statistics():
    (batch,) = batches(1)
    ignored = batch._replace(sample_weights=(np.arange(64) % 2).astype(np.float32))
    found = [train(*begin("2x4"), [x], 1) for x in (batch, ignored)]
    np.testing.assert_array_equal(norm_of(found[0][0])[0], norm_of(found[1][0])[0])
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_a_resumed_run_is_an_unbroken_one(mesh: str, tmp_path: Path):
    learner, state = begin(mesh)
    state, losses = train(learner, state, batches(), 3)
    checkpoints = Checkpoints(tmp_path, {"data": DATA})
    checkpoints.save(learner, state, {}, None)
    restored = checkpoints.restore(learner, 3)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for x, saved in zip(numbers(restored), numbers(state), strict=True):
        np.testing.assert_array_equal(x, saved)
    unbroken, later = train(learner, state, batches(), 3)
    resumed, again = train(learner, restored, batches(), 3)
    np.testing.assert_array_equal(again, later)
    assert np.all(later != losses)
    for x, wanted in zip(numbers(resumed), numbers(unbroken), strict=True):
        np.testing.assert_array_equal(x, wanted)


def test_masks_differ_from_step_to_step():
    losses = losses_of_first_state()
    assert len(set(losses)) == 4
    losses = losses_of_first_state(model_options=("rate=0",))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def losses_of_first_state(**changes: Any) -> list[float]:
    """Those of one batch, were the state that of step 0, 1, 2, 3."""
    found = []
    for number in range(4):
        learner, state = begin("2x4", **changes)
        step = put_whole(np.array(number, np.int32), learner.replicated)
        _, (loss,) = train(learner, dataclasses.replace(state, step=step), batches(1), 1)
        found.append(loss)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, TrainState, Path]:
    """A learner, its last state, and where that lies."""
    learner, state = begin("2x4")
    state, _ = train(learner, state, batches(), 5)
    return learner, state, save(tmp_path_factory.mktemp("run"), learner, state, CHANGED)


def test_predictions_draw_nothing_and_count_nothing(saved: tuple[Learner, TrainState, Path]):
    learner, state, checkpoint = saved
    split = examples(200, seed=1)
    rows = split.take(np.arange(200))
    x = inputs(learner, state, Batch(rows.dense, rows.ids, rows.labels, None))
    mean, variance = norm_of(state)
    params = jax.tree.map(lambda a: np.array(a, "f8"), state.params)
    x = (x - mean) / np.sqrt(variance + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    x = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    logits = (x @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]
    for mesh in ("1x1", "2x4"):
        predictor = Predictor.load(checkpoint, make_mesh(mesh), 64, CHANGED.model)
        first, second = (np.concatenate(list(predictor.probabilities(split))) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_a_warm_start_takes_the_statistics(saved: tuple[Learner, TrainState, Path]):
    learner, state, checkpoint = saved
    warm = warm_start(learner, 7, checkpoint, ["norm"])
    for x, wanted in zip(norm_of(warm), norm_of(state), strict=True):
        np.testing.assert_array_equal(x, wanted)
    np.testing.assert_array_equal(warm.params["norm"]["scale"], state.params["norm"]["scale"])
    assert np.any(warm.params["hidden"]["kernel"] != state.params["hidden"]["kernel"])


def test_a_checkpoint_without_what_a_model_has(tmp_path: Path):
    without = make_learner(CONFIG, make_mesh("1x1"))
    save(tmp_path, without, without.init(0))
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"data": DATA})
    learner, _ = begin("1x1")
    with pytest.raises(UserError, match=r"expected \w+\S* of shape .*, it has no such array"):
        checkpoints.restore(learner, 0)


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
    for mesh in MESHES[1:]:
        split = drawn(mesh)
        np.testing.assert_array_equal(split[0], alone[0])
        np.testing.assert_array_equal(split[1], alone[1])
        assert len(np.unique(split[2])) == 64, "other draws differ from device to device"
    (of_all, *_) = drawn("2x4", broadcast_dims=(0,))
    assert len({row.tobytes() for row in of_all}) == 1
    (of_rows, *_) = drawn("2x4", broadcast_dims=(-1,))
    assert all(len(np.unique(row)) == 1 for row in of_rows), "the last axis shares a mask"


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        pytest.param((2, 4), ("replica", "table"), marks=pytest.mark.thorough),
        ((2, 2, 2), ("replica", "tensor", "table")),
    ],
    ids=["renamed", "with_another_axis"],
)
def test_the_axes_of_a_mesh_may_have_other_names(shape: tuple[int, ...], names: tuple[str, ...]):
    """Masks, statistics, micro-batches, clipping: all that a step does over the axes."""
    usual, initial = begin(f"{shape[0]}x{shape[-1]}", **MICRO_BATCHES)
    changed = config(**MICRO_BATCHES)
    described = describe(changed)
    collection = EmbeddingCollection(
        described.tables,
        described.features,
        described.lookups,
        jax.make_mesh(shape, names, (jax.sharding.AxisType.Auto,) * len(names)),
        described.optimizer,
        usual.collection.plan,
        data_axes=names[0],
        model_axis=names[-1],
    )
    named = Learner(
        collection,
        functools.partial(make_model, changed, described.composers),
        usual.dense_optimizer,
        usual.loss,
        changed.clip_norm,
        changed.accumulation_steps,
    )
    expected, losses = train(usual, initial, batches(), 4)
    state, found = train(named, named.init(0), batches(), 4)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for x, y in zip(numbers(state), numbers(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    (batch,) = batches(1)
    logits = make_predict(named)(state, named.put_evaluation(batch))
    wanted = make_predict(usual)(expected, usual.put_evaluation(batch))
    np.testing.assert_allclose(logits, wanted, rtol=1e-5)


def test_keys_of_another_kind_are_refused():
    def make(rngs: nnx.Rngs) -> nnx.Module:
        del rngs
        return nnx.Dropout(0.5, rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))

    learner = make_learner(CONFIG, make_mesh("1x1"))
    with pytest.raises(UserError, match=r"random keys of key<rbg>, expected key<fry>"):
        Learner(learner.collection, make, learner.dense_optimizer)
