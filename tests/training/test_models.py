"""Every model through config, tables and step, on a mesh; options and classes of the user's own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlrm_jax.config import Config
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.fields import VECTOR, WEIGHT, Model
from dlrm_jax.models.mlp import MLP
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generate_data
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.model import OF_MODELS, make_model, model_class, unread
from dlrm_jax.training.ranking_losses import RankingLoss
from dlrm_jax.training.serialization import flatten
from dlrm_jax.training.step import make_predict, make_train_step

CONFIG = Config(
    table_rows=(30, 40, 50),
    bag_lengths=(1, 1, 3),
    embedding_dim=8,
    dense_features=3,
    bottom_mlp=(8, 8),
    top_mlp=(8, 1),
    batch_size=64,
    examples=800,
    placements=("C1=row_wise", "C2=table_wise:1"),
    learning_rate=0.1,
)
CHANGES: dict[str, dict[str, Any]] = {
    "ncf": {"table_rows": (30, 40), "bag_lengths": (1,), "dense_features": 0},
    "din": {"model_options": ("target=C2", "attention=6-4")},
    "hstu": {"model_options": ("target=C2",)},
    "stca": {"model_options": ("target=C2",)},
    "ssr": {"model_options": ("view_width=16", "filters=dynamic")},
}


def config_of(model: str) -> Config:
    return dataclasses.replace(CONFIG, model=model, **CHANGES.get(model, {}))


# It reads whole histories. The formulas of others are those of others, or parts of them, or take
# long to compile: DLRM is everywhere, and a class below reads weights.
QUICK = ("din",)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in MODELS],
)
def test_it_trains_on_a_mesh(name):
    config = config_of(name)
    mesh = make_mesh("2x4")
    learner = make_learner(config, mesh)
    batch = TrainBatches(generate_data(config).train, config.batch_size, 0)[0]
    placed = learner.put(batch)
    state = learner.init(0)
    # The first loss is that of the model by itself, on what its tables hold.
    tables = {
        table.name: arrays["table"]
        for table, arrays in learner.collection.to_arrays(state.embedding)
    }
    ends = np.cumsum(config.table_bag_lengths)
    vectors = {}
    for lookup in learner.collection.lookups:
        place = config.table_names.index(lookup.feature)
        bags = np.asarray(batch.ids)[:, ends[place] - config.table_bag_lengths[place] : ends[place]]
        sequence = np.where(bags[..., None] >= 0, np.asarray(tables[lookup.table])[bags], 0)
        vectors[lookup.name] = jnp.asarray(
            sequence if lookup.pooling == "none" else sequence.sum(1)
        )
    model: Any = make_model(config, {}, nnx.Rngs(0))  # for training, with statistics of the batch
    nnx.update(model, state.params)
    logits = model(jnp.asarray(batch.dense), vectors)
    assert not isinstance(learner.loss, RankingLoss | MemberLoss)
    wanted = float(jnp.mean(learner.loss(logits, jnp.asarray(batch.labels))))
    step = make_train_step(learner)
    losses = []
    for _ in range(15):
        state, loss = step(state, placed)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(wanted, rel=1e-4)
    assert losses[-1] < 0.95 * losses[0]
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


def weights_by_table(learner, state):
    pairs = learner.collection.to_arrays(state.embedding)
    return {table.name: np.asarray(arrays["table"]) for table, arrays in pairs}


class SumOfWeights(Model):
    """What a user writes: one class."""

    @staticmethod
    def reads(field):
        return (WEIGHT, VECTOR) if field.max_ids == 1 else (VECTOR,)

    def __init__(self, dense_features, fields, *, factor: float, rngs: nnx.Rngs):
        del dense_features, rngs
        self.names = tuple(field.name for field in fields)
        self.factor = factor

    def __call__(self, dense, vectors):
        del dense
        return self.factor * jnp.stack([vectors[name][:, 0] for name in self.names]).sum(0)


def test_a_class_of_the_users_own():
    config = dataclasses.replace(
        CONFIG, model=f"{__name__}:SumOfWeights", model_options=("factor=2.5",)
    )
    learner = make_learner(config, make_mesh("2x4"))
    batch = TrainBatches(generate_data(config).train, config.batch_size, 0)[0]
    state = learner.init(0)
    logits = make_predict(learner)(state, learner.put(batch))
    assert set(learner.collection.tables) == {"C1", "C1.weight", "C2", "C2.weight", "C3"}
    assert (
        learner.collection.plan.describe(learner.collection.tables.values()).count("row_wise") == 2
    )
    tables = {
        t.name: np.asarray(a["table"]) for t, a in learner.collection.to_arrays(state.embedding)
    }
    ids = np.asarray(batch.ids)
    bag = np.where(ids[:, 2:] >= 0, tables["C3"][ids[:, 2:], 0], 0).sum(1)
    wanted = 2.5 * (tables["C1"][ids[:, 0], 0] + tables["C2"][ids[:, 1], 0] + bag)
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)


class OneMLP(Model):
    """A class whose constructor takes the settings of its MLP."""

    @staticmethod
    def reads(field):
        return (VECTOR,)

    def __init__(self, dense_features, fields, *, compute_dtype, rngs: nnx.Rngs):
        self.names = tuple(field.name for field in fields)
        widths = (dense_features + sum(field.width for field in fields), 4, 1)
        self.mlp = MLP(widths, last_relu=False, rngs=rngs, dtype=compute_dtype)

    def __call__(self, dense, vectors):
        return self.mlp(jnp.concatenate([dense, *(vectors[x] for x in self.names)], axis=1))[:, 0]


class OwnDropout(OneMLP):
    """A class that applies dropout itself."""

    def __init__(self, dense_features, fields, *, dtype, dropout: float, rngs: nnx.Rngs):
        super().__init__(dense_features, fields, compute_dtype=dtype, rngs=rngs)
        self.share = dropout


def test_a_class_of_the_users_own_takes_dtype_and_dropout():
    config = dataclasses.replace(
        CONFIG, model=f"{__name__}:OneMLP", compute_dtype="bfloat16", dropout=0.25
    )
    model: Any = make_model(config, {}, nnx.Rngs(0))
    assert model.mlp.dtype == "bfloat16"
    assert model.mlp.is_regularized
    assert "dropout" not in unread(config)
    config = dataclasses.replace(config, model=f"{__name__}:OwnDropout")
    model = make_model(config, {}, nnx.Rngs(0))
    assert model.mlp.dtype == "bfloat16"
    assert (model.share, model.mlp.is_regularized) == (0.25, False)
    neither = dataclasses.replace(config, model=f"{__name__}:SumOfWeights")
    with pytest.raises(UserError, match="SumOfWeights takes no argument compute_dtype; expected"):
        make_model(dataclasses.replace(neither, model_options=("factor=1",)), {}, nnx.Rngs(0))
    assert unread(neither)["dropout"].endswith("takes no argument of that name or dtype")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dlmr"}, "expected one of logistic_regression, .*MODULE:CLASS; got 'dlmr'"),
        ({"model": "no_such_module:M"}, "can't import 'no_such_module:M': No module named"),
        ({"model": "math:M"}, "can't import 'math:M'"),
        ({"model": "math:pi"}, "expected a subclass of"),
        ({"model": f"{__name__}:SumOfWeights"}, "needs factor=VALUE"),
        (
            {"model": "dcn", "model_options": ("layer=3",)},
            "^model_options: dcn has the options layers; expected NAME=VALUE of one of them, got '",
        ),
        ({"model": "dcn", "model_options": ("layers",)}, "got 'layers'"),
        (
            {"model": "dcn", "model_options": ("layers=x",)},
            "^model_options: layers: expected a whole number from 0, got 'layers=x'",
        ),
        ({"model": "dcn", "model_options": ("layers=-1",)}, "from 0, got 'layers=-1'"),
        ({"model": "dcn", "model_options": ("layers=1", "layers=2")}, "layers is set twice"),
        ({"model": "xdeepfm", "model_options": ("cin=8,8",)}, "numbers such as 64-32"),
        ({"model": "xdeepfm", "model_options": ("cin=0",)}, "numbers such as 64-32"),
        ({"model": "autoint", "model_options": ("heads=0",)}, "heads: expected at least 1, got 0"),
        ({"model": "finalmlp", "model_options": ("second_mlp=x",)}, "numbers such as 64-32"),
        ({"model": "finalmlp", "model_options": ("second_dropout=x",)}, "expected a number, got"),
        ({"model": "ssr", "model_options": ("filters=x",)}, "expected static or dynamic"),
        ({"model": ":M"}, "can't import ':M'"),
        ({"model": "dcn_v2", "model_options": ("structure=up",)}, "stacked or parallel"),
        (
            {"model": "fm", "model_options": ("x=1",)},
            "^model_options: fm has no options, got 'x=1'; leave it out",
        ),
        (
            {"model": "fm", "compute_dtype": "bfloat16"},
            "^compute_dtype: fm takes no argument compute_dtype; expected float32, got bfloat16",
        ),
    ],
)
def test_models_that_cannot_be_made_are_refused(changes, message):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(UserError, match=message):
        make_model(config, {}, nnx.Rngs(0))


def test_fields_that_nothing_reads_are_named():
    # Of float32, and of a constant rate.
    always = {"stochastic_rounding", "decay_start", "plateau_patience", "table_l2_rows"}
    of_mlps = {"dropout", "normalization"}
    compressing = {"collisions", "composition", "temperature", "compress_above"}
    assert set(unread(CONFIG)) == compressing | always
    fm = dataclasses.replace(CONFIG, model="fm", compression="mixed_dimensions")
    assert set(unread(fm)) == {*OF_MODELS, *of_mlps, "collisions", "composition", *always}
    assert "compression" in unread(dataclasses.replace(CONFIG, model="logistic_regression"))
    assert issubclass(model_class(fm), Model)


def test_parameters_without_dots_in_their_names():
    config = dataclasses.replace(config_of("ncf"), compression="mixed_dimensions", compress_above=0)
    learner = make_learner(config, make_mesh("1x2"))
    params, _ = learner.init_model(0)
    assert {"parts.C2.weight", "parts.C2_mlp.weight"} <= set(flatten(params))
    keys = {entry.key for path, _ in jax.tree.leaves_with_path(params) for entry in path}
    assert not any("." in str(key) for key in keys)
