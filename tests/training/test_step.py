"""What a step promises: compiled once, in place, nothing as large as a table, few collectives."""

from __future__ import annotations

import dataclasses
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
from flax import nnx
from jaxtyping import Array
from named_arrays import arrays_of
from setups import MESHES, train

from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import SGD, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.fields import Field, Model, Vectors
from dlrm_jax.presets import preset
from dlrm_jax.training.build import check_config, make_learner
from dlrm_jax.training.compiled import abstract_batch, compile_step
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.losses import bce
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


def compiled_step(learner: Learner, state: TrainState, config: Config):
    step: Any = make_train_step(learner)
    return step.lower(state, learner.put(make_batch(config))).compile()


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


@pytest.mark.parametrize("mesh", MESHES)
def test_many_steps_are_one_compilation(mesh):
    config = small()
    learner = make_learner(config, make_mesh(mesh))
    step: Any = make_train_step(learner)
    state = learner.init(0)
    for i in range(4):
        batch = learner.put(make_batch(config, seed=i))
        state, _ = jax.block_until_ready(step(state, batch))
    assert state.step == 4
    assert step._cache_size() == 1


@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_tables_are_updated_in_place(mesh):
    config = small(frozen_tables=("C3",))
    learner = make_learner(config, make_mesh(mesh))
    state = learner.init(0)
    weights, before = state.embedding.tables, pointers(state.embedding.tables)
    compiled = compiled_step(learner, state, config)
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_per_device(state.embedding)

    state, _ = jax.block_until_ready(compiled(state, learner.put(make_batch(config))))
    assert all(array.is_deleted() for array in weights.values())
    assert pointers(state.embedding.tables) == before


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ("1x1", {"optimizer": "sgd"}),
        ("2x4", {"optimizer": "sgd"}),
        ("1x1", {"optimizer": "rowwise_adagrad"}),
        ("2x4", {"optimizer": "rowwise_adagrad"}),
        ("1x1", {"optimizer": "sgd", "table_dtype": "bfloat16", "stochastic_rounding": False}),
        ("2x4", {"optimizer": "rowwise_adagrad", "table_dtype": "bfloat16"}),
    ],
)
def test_nothing_is_as_large_as_a_large_table(mesh, changes):
    config = with_a_large_table(**changes)
    learner = make_learner(config, make_mesh(mesh))
    step: Any = make_train_step(learner)
    batch = abstract_batch(learner, BATCH, config.dense_features, weighted=False)
    compiled = step.lower(learner.state_specs(), batch).compile(OPTIMIZED)
    table = learner.collection.state_specs().tables["C2"]
    shard = table.sharding.shard_shape(table.shape)
    memory: Any = compiled.memory_analysis()
    slab = math.prod(shard) * table.dtype.itemsize
    assert memory.temp_size_in_bytes < 0.01 * slab
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert new < 0.01 * slab

    rows = MANY_ROWS // learner.mesh.shape["model"]
    large = {operation for operation, size in results(compiled) if size >= rows}
    in_place = {"scatter", "fusion", "call", "while"}
    assert large <= {"parameter", "get-tuple-element", "tuple", "bitcast"} | in_place


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        ("1x1", set()),
        ("8x1", {"all-gather", "all-reduce"}),
        ("1x8", {"all-to-all", "all-gather", "all-reduce"}),
        ("2x4", {"all-to-all", "all-gather", "all-reduce"}),
    ],
)
def test_collectives(mesh, expected):
    config = small()
    learner = make_learner(config, make_mesh(mesh))
    found = results(compiled_step(learner, learner.init(0), config))
    collectives = [(name, size) for name, size in found if COLLECTIVE.match(name)]
    names = {name for name, _ in collectives}
    assert names <= expected
    assert ("all-to-all" in names) == ("all-to-all" in expected)
    # Only what the batch reads travels: its occurrences of rows, with a vector each.
    slots = BATCH * sum(config.table_bag_lengths) * config.embedding_dim
    assert max((size for _, size in collectives), default=0) <= slots


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_only_the_rows_read_change(mesh, optimizer):
    config = small(optimizer=optimizer, frozen_tables=("C3",), table_optimizers=("C1=adagrad",))
    learner = make_learner(config, make_mesh(mesh))
    state = learner.init(0)
    before = arrays_of(learner, state)
    batches = [make_batch(config, seed) for seed in range(3)]
    state, _ = train(learner, state, batches, steps=3)
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
    config = small()
    learner = make_learner(config, make_mesh("2x4"))
    state = learner.init(0)
    batch = make_batch(config)
    learner.collection.check_ids(batch.ids)
    batch.ids[7, 2] = 3000
    _, losses = train(learner, state, [batch], steps=1)
    assert np.isnan(losses[0])
    with pytest.raises(UserError, match=r"feature C2, sample 7: id 3000 .*ids 0\.\.2999"):
        learner.collection.check_ids(batch.ids)


def test_accumulation_gives_the_same_losses():
    config, losses = small(), {}
    batches = [make_batch(config, seed) for seed in range(3)]
    for micro_batches in (1, 4):
        changed = dataclasses.replace(config, accumulation_steps=micro_batches)
        learner = make_learner(changed, make_mesh("2x4"))
        _, losses[micro_batches] = train(learner, learner.init(0), batches, steps=6)
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch_size": 60}, "batch_size"),
        ({"batch_size": 64, "accumulation_steps": 16}, "batch_size / accumulation_steps"),
    ],
)
def test_a_batch_that_devices_cannot_share(changes, field):
    with pytest.raises(UserError, match=f"{field}.* samples can't be split .*mesh 2x4"):
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


class NoLogits(Model):
    def __init__(self, dense_features: int, fields: Sequence[Field], *, rngs: nnx.Rngs):
        del fields, rngs
        self.weights = nnx.Param(jnp.zeros((dense_features, 1)))

    def __call__(self, dense: Array, vectors: Vectors) -> Array:
        return dense @ self.weights[...]


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


@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_the_loss_is_that_of_the_predictions_before_the_update(mesh):
    config = small()
    learner = make_learner(config, make_mesh(mesh))
    state, batch = learner.init(0), make_batch(config)
    logits = jax.block_until_ready(make_predict(learner)(state, learner.put_evaluation(batch)))
    _, losses = train(learner, state, [batch], steps=1)
    expected = bce(jax.device_put(np.array(logits)), jax.device_put(batch.labels)).mean()
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)


def test_a_mesh_of_other_axes_is_refused():
    mesh = jax.make_mesh((2, 4), ("replica", "table"), (jax.sharding.AxisType.Auto,) * 2)
    collection = EmbeddingCollection(
        [Table("t", 8, 4)],
        [Feature("f")],
        [Lookup("f", "f", "t")],
        mesh,
        SGD(0.1),
        data_axes="replica",
        model_axis="table",
    )
    message = "one of dlrm_jax.mesh.make_mesh for a learner, got the axes replica, table"
    with pytest.raises(UserError, match=message):
        Learner(collection, lambda rngs: nnx.Linear(1, 1, rngs=rngs), optax.sgd(0.1))
