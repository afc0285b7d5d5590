"""Models of the zoo with dropout, normalization and embedded numbers, from a config."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from normalized import numbers
from saved_run import CONFIG, DATA, examples, save
from setups import train

from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.presets import preset
from dlrm_jax.training.build import check_config, make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.model import make_model, unread
from dlrm_jax.training.serialization import flatten

REGULARIZED = dataclasses.replace(
    CONFIG,
    numeric_embedding="linear",
    dropout=0.3,
    normalization="batch",
    table_l2=0.01,
    table_l2_rows="all",
    dense_l2=0.01,
    learning_rate=0.05,
)


@pytest.mark.thorough  # by default `test_model_state.py` and `test_saved_model_state.py`
def test_results_are_the_same_on_every_mesh_and_restored(tmp_path: Path):
    drawn = TrainBatches(examples(256), CONFIG.batch_size, seed=0)
    batches, found = [drawn[0], drawn[1]], []
    for mesh in ("1x1", "2x4"):
        learner = make_learner(REGULARIZED, make_mesh(mesh))
        state, losses = train(learner, learner.init(0), batches, 2)
        found.append((losses, *numbers((state.params, state.model_state))))
        names = flatten(state.params)
        assert {"numeric_vectors.vector", "model.top.norms.0.scale"} <= names.keys()
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)

    # DLRM's bottom MLP, whose input has no numbers, has a kernel without numbers.
    save(tmp_path, learner, state, REGULARIZED)
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"data": DATA, **REGULARIZED.identity()})
    restored = checkpoints.restore(learner, 2)
    for part in ("params", "optimizer", "model_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(restored, part), getattr(state, part))


@pytest.mark.parametrize("model", ["dlrm", "dcn_v2"])
def test_the_recipe_of_criteo_x1_has_39_fields_of_width_10(model):
    config = dataclasses.replace(preset("ctr_x1"), model=model)
    assert (len(config.table_rows), config.dense_features) == (26, 13)
    small = dataclasses.replace(config, table_rows=(20,) * 26)
    learner = make_learner(small, make_mesh("1x1"))
    shapes = {name: x.shape for name, x in flatten(learner.state_specs().params).items()}
    assert shapes["numeric_vectors.vector"] == (13, 10)
    if model == "dcn_v2":
        assert shapes["model.cross.0.factors.0"] == (390, 390)
    else:  # 39 vectors and the constant of the bottom MLP
        assert shapes["model.top.layers.0.kernel"] == (10 + 40 * 39 // 2, 500)


# Of FuxiCTR's logs in BARS: all parameters, less those of tables and of the vectors of numbers.
# Its MaskNet has no bias in three layers of 400 outputs, its FinalMLP a second bias of the logit.
# Its AutoInt+ has no residual matrix where widths are equal, nor a bias of the linear model.
PUBLISHED = {
    "ctr_x1_autoint_plus": 23_844_454 - 20_863_160 - 2_086_316 + 2 * 256 * 256 + 1,
    "ctr_x1_afn": 24_081_239 - 20_863_160,
    "ctr_x1_afn_plus": 42_411_303 - 2 * 20_863_160,
    "ctr_x1_masknet": 21_530_629 - 20_863_160 + 3 * 400,
    "ctr_x1_finalmlp": 22_478_162 - 20_863_420 - 130 - 230 - 1,
    "ctr_x1_finalnet": 21_658_582 - 20_863_420,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_other_models_have_as_many_parameters_as_published(name):
    config = preset(name)
    model = nnx.eval_shape(lambda: make_model(config, {}, nnx.Rngs(0)))
    params = flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    sizes = {key: math.prod(x.shape) for key, x in params.items()}
    numeric = [size for key, size in sizes.items() if key.startswith("numeric_vectors")]
    assert sum(sizes.values()) - sum(numeric) == PUBLISHED[name]
    assert set(numeric) <= {130, 13}  # vectors, and the weights of a linear model


@pytest.mark.parametrize("name", ["gdcn", "fcn", "wukong", "rankmixer", "ssr"])
def test_models_without_a_published_recipe_have_a_preset(name):
    config = preset(f"ctr_x1_{name}")
    check_config(config, make_mesh("1x1"))
    model = nnx.eval_shape(lambda: make_model(config, {}, nnx.Rngs(0)))
    assert flatten(nnx.to_pure_dict(nnx.state(model)))["numeric_vectors.vector"].shape == (13, 10)
    unchanged = ("batch_size", "optimizer", "learning_rate", "table_l2", "plateau_factor")
    for field in unchanged:
        assert getattr(config, field) == getattr(preset("ctr_x1"), field)


def test_what_no_model_reads_is_said():
    config = dataclasses.replace(CONFIG, model="fm", dropout=0.1)
    assert unread(config)["dropout"] == "without a model with an MLP; fm has none"
    for changes, message in (
        (
            {"model": "deepfm", "top_mlp": (1,), "dropout": 0.1},
            "dropout: the model has no MLP with a hidden layer",
        ),
        ({"numeric_embedding": "linear", "dense_features": 0}, "there are no dense features"),
    ):
        with pytest.raises(UserError, match=message):
            make_learner(dataclasses.replace(CONFIG, **changes), make_mesh("1x1"))
