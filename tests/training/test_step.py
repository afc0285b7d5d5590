"""What a step promises: compiled once, in place, nothing as large as a table, few collectives."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from as_users import OPTIMIZED
from compilations import compilations
from flax import nnx
from jaxtyping import Array
from named_arrays import arrays_of
from setups import step_of, train

from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import SGD, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.fields import Field, Model, Vectors
from dlrm_jax.presets import preset
from dlrm_jax.training.build import check_config, make_learner
from dlrm_jax.training.compiled import abstract_batch, compile_step, lower_step
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_predict, make_train_step

BATCH = 64
USED_ROWS = 40  # ids are below, on tables that are larger
MANY_ROWS = 5_000_011
COLLECTIVE = re.compile("all-to-all|all-gather|all-reduce|reduce-scatter|collective-|ragged-all")


def small(**changes) -> Config:
    defaults = {
        "table_rows": (50, 3000, 600),
        "bag_lengths": (1, 3, 2),
        "placements": ("C1=replicated", "C2=row_wise", "C3=table_wise"),
        "embedding_dim": 8,
        "bottom_mlp": (16, 8),
        "top_mlp": (16, 1),
        "batch_size": BATCH,
        "evaluation_batch_size": BATCH,
        "kernels": "jax",  # those of tests/native, which may be built or not, have tests there
    }
    return dataclasses.replace(preset("small"), **(defaults | changes))


FULLY_SHARDED = ("C1=fully_sharded", "C2=fully_sharded", "C3=fully_sharded")


def with_a_large_table(**changes) -> Config:
    return small(table_rows=(50, MANY_ROWS, 600), **changes)


def make_batch(config: Config, seed: int = 0) -> Batch:
    """Random features; the label says whether the first id is even."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, USED_ROWS, (BATCH, sum(config.table_bag_lengths)), dtype=np.int32)
    return Batch(
        dense=rng.normal(size=(BATCH, config.dense_features)).astype(np.float32),
        ids=ids,
        labels=(ids[:, 0] % 2 == 0).astype(np.float32),
        sample_weights=np.ones(BATCH, np.float32),
    )


@functools.cache
def compiled_step(mesh: str) -> tuple[Learner, Any]:
    """The learner of `small` on a mesh, and its compiled step."""
    learner = make_learner(small(), make_mesh(mesh))
    batch = abstract_batch(learner, BATCH, small().dense_features)
    step: Any = step_of(learner)
    return learner, step.lower(learner.state_specs(), batch).compile()


def results(compiled) -> list[tuple[str, int]]:
    """Operation and size of the largest array it gives, of each instruction of the program."""
    found = re.findall(r"^\s*(?:ROOT )?\S+ = (.*?) ([a-z][\w-]*)\(", compiled.as_text(), re.M)
    return [(operation, _largest(shape)) for shape, operation in found]


def _largest(shape: str) -> int:
    dims = re.findall(r"\[([\d,]*)\]", shape)
    return max((math.prod(int(n) for n in d.split(",") if n) for d in dims), default=0)


def bytes_per_device(tree) -> int:
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def pointers(arrays: dict[str, jax.Array]) -> dict[str, list[int]]:
    return {
        name: [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
        for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    "mesh",
    ["2x4", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("1x1", "8x1", "4x2", "1x8"))],
)
def test_many_steps_are_one_compilation(mesh):
    learner, compiled = compiled_step(mesh)
    batches = [make_batch(small(), seed) for seed in range(4)]
    state = learner.init(0)
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_per_device(state.embedding)
    state, _ = train(learner, state, batches, steps=4)
    assert state.step == 4
    assert step_of(learner)._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


def test_further_first_states_are_made_without_a_compilation():
    learner = make_learner(small(), make_mesh("2x4"))
    first = learner.init(5)
    with compilations() as compiled:
        second = learner.init(5)
    assert not compiled
    jax.tree.map(np.testing.assert_array_equal, second, first)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        pytest.param("1x1", {"optimizer": "sgd"}, marks=pytest.mark.thorough),
        pytest.param("2x4", {"optimizer": "sgd"}, marks=pytest.mark.thorough),
        pytest.param("1x1", {"optimizer": "rowwise_adagrad"}, marks=pytest.mark.thorough),
        pytest.param("2x4", {"optimizer": "rowwise_adagrad"}, marks=pytest.mark.thorough),
        pytest.param(
            "1x1",
            {"optimizer": "sgd", "table_dtype": "bfloat16", "stochastic_rounding": False},
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "2x4",
            {"optimizer": "rowwise_adagrad", "table_dtype": "bfloat16"},
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "2x4",
            {"optimizer": "rowwise_adagrad", "placements": FULLY_SHARDED},
            marks=pytest.mark.thorough,
        ),
        ("2x4", {"optimizer": "adam", "placements": FULLY_SHARDED, "clip_norm": 1.0}),
        pytest.param(
            "2x4",
            {"optimizer": "sgd", "placements": FULLY_SHARDED, "pipelined": True},
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_nothing_is_as_large_as_a_large_table(mesh, changes):
    config = with_a_large_table(**changes)
    learner = make_learner(config, make_mesh(mesh))
    lowered = lower_step(learner, BATCH, config.dense_features, pipelined=config.pipelined)
    compiled = lowered.compile(OPTIMIZED)
    slab = learner.collection.layout.slab_of("C2").name
    table = learner.collection.state_specs().tables[slab]
    shard = table.sharding.shard_shape(table.shape)
    memory: Any = compiled.memory_analysis()
    nbytes = math.prod(shard) * table.dtype.itemsize
    assert memory.temp_size_in_bytes < 0.01 * nbytes
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert new < 0.01 * nbytes

    rows = MANY_ROWS // learner.mesh.size
    large = {operation for operation, size in results(compiled) if size >= rows}
    in_place = {"scatter", "fusion", "call", "while"}
    assert large <= {"parameter", "get-tuple-element", "tuple", "bitcast"} | in_place


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        pytest.param("1x1", set(), marks=pytest.mark.thorough),
        ("8x1", {"all-gather", "all-reduce"}),
        pytest.param("1x8", {"all-to-all", "all-gather", "all-reduce"}, marks=pytest.mark.thorough),
        ("2x4", {"all-to-all", "all-gather", "all-reduce"}),
    ],
)
def test_collectives(mesh, expected):
    config = small()
    found = results(compiled_step(mesh)[1])
    collectives = [(name, size) for name, size in found if COLLECTIVE.match(name)]
    names = {name for name, _ in collectives}
    assert names <= expected
    assert ("all-to-all" in names) == ("all-to-all" in expected)
    # Only what the batch reads travels: its occurrences of rows, with a vector each.
    slots = BATCH * sum(config.table_bag_lengths) * config.embedding_dim
    assert max((size for _, size in collectives), default=0) <= slots


@pytest.mark.parametrize(
    ("mesh", "optimizer"),
    [
        ("2x4", "adam"),
        pytest.param("1x1", "sgd", marks=pytest.mark.thorough),
        pytest.param("1x1", "adam", marks=pytest.mark.thorough),
        pytest.param("2x4", "sgd", marks=pytest.mark.thorough),
    ],
)
def test_only_the_rows_read_change_and_in_place(mesh, optimizer):
    config = small(optimizer=optimizer, frozen_tables=("C3",), table_optimizers=("C1=adagrad",))
    learner = make_learner(config, make_mesh(mesh))
    state = learner.init(0)
    before = arrays_of(learner, state)
    weights, places = state.embedding.tables, pointers(state.embedding.tables)
    batches = [make_batch(config, seed) for seed in range(3)]
    state, _ = train(learner, state, batches, steps=3)
    assert all(array.is_deleted() for array in weights.values())
    assert pointers(state.embedding.tables) == places
    after = arrays_of(learner, state)

    np.testing.assert_array_equal(after["C3/table"], before["C3/table"])
    ids = np.concatenate([batch.ids for batch in batches])
    for table, columns in (("C1", ids[:, :1]), ("C2", ids[:, 1:4])):
        rows = len(before[f"{table}/table"])
        read = np.isin(np.arange(rows), columns)
        for name in (name for name in before if name.startswith(f"{table}/")):
            np.testing.assert_array_equal(after[name][~read], before[name][~read])
            assert np.all(np.any(after[name][read] != before[name][read], axis=1)), name


def test_an_id_out_of_range_gives_nan_and_is_found_by_name():
    learner, _ = compiled_step("2x4")
    batch = make_batch(small())
    learner.collection.check_ids(batch.ids)
    batch.ids[7, 2] = 3000
    _, losses = train(learner, learner.init(0), [batch], steps=1)
    assert np.isnan(losses[0])
    with pytest.raises(UserError, match=r"feature C2, sample 7: id 3000 .*ids 0\.\.2999"):
        learner.collection.check_ids(batch.ids)


@pytest.mark.thorough
def test_accumulation_gives_the_same_losses():
    whole, _ = compiled_step("2x4")
    accumulating = make_learner(small(accumulation_steps=4), make_mesh("2x4"))
    batches = [make_batch(small(), seed) for seed in range(3)]
    _, wanted = train(whole, whole.init(0), batches, steps=6)
    _, losses = train(accumulating, whole.init(0), batches, steps=6)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "samples", "end"),
    [
        ({"batch_size": 60}, 60, "$"),
        ({"batch_size": 64, "accumulation_steps": 16}, 64, ", in 16 micro-batches$"),
    ],
)
def test_a_batch_that_devices_cannot_share(changes, samples, end):
    message = f"^batch_size: {samples} samples can't be split .*mesh 2x4{end}"
    with pytest.raises(UserError, match=message):
        make_learner(small(**changes), make_mesh("2x4"))


def test_batches_of_evaluation_are_no_matter_of_a_train_step():
    config, mesh = small(evaluation_batch_size=60), make_mesh("2x4")
    make_learner(config, mesh)
    with pytest.raises(UserError, match="evaluation_batch_size: 60 samples can't be split"):
        check_config(config, mesh)


@pytest.mark.parametrize(
    ("field", "text"), [("model", "dlrm, or MODULE:CLASS"), ("optimizer", "sgd, .*, adam")]
)
def test_unknown_names_are_noticed_before_the_data_are_read(field, text):
    with pytest.raises(UserError, match=f"{field}: expected one of .*{text}.* got 'nonsense'"):
        check_config(small(**{field: "nonsense"}), make_mesh("2x4"))


def test_a_model_that_gives_no_logits():
    config = small(model="test_step:NoLogits")
    with pytest.raises(UserError, match=r"a logit for each of 64 samples, .* shape \(64, 1\)"):
        compile_step(make_learner(config, make_mesh("1x1")), BATCH, config.dense_features)


def small_learner(**changes: Any) -> Learner:
    collection = EmbeddingCollection(
        [Table("t", 8, 4)], [Feature("f")], [Lookup("f", "f", "t")], make_mesh("1x2"), SGD(0.1)
    )
    return Learner(
        collection, lambda rngs: Sums(nnx.Linear(1, 1, rngs=rngs)), optax.sgd(0.1), **changes
    )


class Sums(nnx.Module):
    def __init__(self, layer: nnx.Linear):
        self.layer = layer

    def __call__(self, dense: Array, pooled: dict[str, Array]) -> Array:
        return self.layer(dense)[:, 0] + pooled["f"].sum(1)


@pytest.mark.parametrize(
    ("array", "loss", "message"),
    [
        ("labels", None, r"labels: expected one for each of 4 samples, got shape \(4, 1\)"),
        ("sample_weights", None, r"sample_weights: expected one for each of 4 .* got .*\(4, 1\)"),
        (None, lambda z, y: z[:, None] - y, r"the loss .* value for each of 4 .* \(4, 4\)"),
        (None, lambda z, y: jnp.mean(z - y), r"the loss .* value for each of 4 .* \(\)"),
    ],
)
def test_what_would_be_broadcast_is_refused(array, loss, message):
    learner = small_learner(**({"loss": loss} if loss else {}))
    ones = np.ones(8, np.float32)
    batch = Batch(ones[:, None], np.zeros((8, 1), np.int32), ones, ones)
    if array:
        batch = batch._replace(**{array: ones[:, None]})
    with pytest.raises(UserError, match=message):
        jax.eval_shape(make_train_step(learner), learner.state_specs(), batch)


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_the_clip_norm_is_finite_and_not_negative(value):
    with pytest.raises(UserError, match=f"^clip_norm: expected a finite .*, got {value!r}"):
        small_learner(clip_norm=value)


@pytest.mark.parametrize("value", [0, -2])
def test_there_is_at_least_one_micro_batch(value):
    with pytest.raises(UserError, match=f"^accumulation_steps: expected .*, got {value}"):
        small_learner(accumulation_steps=value)


def test_micro_batches_divide_the_batch():
    ones = np.ones(8, np.float32)
    batch = Batch(ones[:, None], np.zeros((8, 1), np.int32), ones, ones)
    with pytest.raises(UserError, match=r"expected a batch of a multiple of 3 samples, .* got 8"):
        small_learner(accumulation_steps=3).put(batch)


class NoLogits(Model):
    def __init__(self, dense_features: int, fields: Sequence[Field], *, rngs: nnx.Rngs):
        del fields, rngs
        self.weights = nnx.Param(jnp.zeros((dense_features, 1)))

    def __call__(self, dense: Array, vectors: Vectors) -> Array:
        return dense @ self.weights[...]


@pytest.mark.thorough
@pytest.mark.parametrize("table_dtype", ["float32", "bfloat16"])
def test_bfloat16_trains(table_dtype):
    config = small(compute_dtype="bfloat16", table_dtype=table_dtype)
    learner = make_learner(config, make_mesh("2x4"))
    batches = [make_batch(config, seed) for seed in range(3)]
    state, losses = train(learner, learner.init(0), batches, steps=30)
    assert np.all(np.isfinite(losses))
    assert losses[-3:].mean() < 0.9 * losses[:3].mean()
    pairs = learner.collection.to_arrays(state.embedding)
    assert {arrays["table"].dtype.name for _, arrays in pairs} == {table_dtype}
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}


@pytest.mark.parametrize("mesh", [pytest.param("1x1", marks=pytest.mark.thorough), "2x4"])
def test_the_loss_is_that_of_the_predictions_before_the_update(mesh):
    learner, _ = compiled_step(mesh)
    state, batch = learner.init(0), make_batch(small())
    logits = jax.block_until_ready(make_predict(learner)(state, learner.put_evaluation(batch)))
    _, losses = train(learner, state, [batch], steps=1)
    expected = np.mean(np.logaddexp(0, logits) - batch.labels * np.asarray(logits))
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((2, 4), ("data", "model"), (jax.sharding.AxisType.Explicit,) * 2)
    collection = EmbeddingCollection(
        [Table("t", 8, 4)], [Feature("f")], [Lookup("f", "f", "t")], mesh, SGD(0.1)
    )
    with pytest.raises(UserError, match="type Auto for a learner, got Explicit ones"):
        Learner(collection, lambda rngs: nnx.Linear(1, 1, rngs=rngs), optax.sgd(0.1))
