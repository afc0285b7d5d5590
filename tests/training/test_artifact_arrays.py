"""A warm start takes tables and layers of an artifact, as of the run that it is of."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from named_arrays import arrays_of

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.warm_start import warm_start

RUN = Path(__file__).parents[1] / "previous" / "run_of_format_3"


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel.read(RUN)


@pytest.fixture(scope="module")
def learner(model: TrainedModel) -> Learner:
    return make_learner(model.config, make_mesh("1x1"))


def test_everything_is_that_of_the_run(model: TrainedModel, learner: Learner, artifact: Path):
    found = arrays_of(learner, warm_start(learner, 5, artifact, ["all"], [model.data]))
    for table, rows in model.tables():
        np.testing.assert_array_equal(found.pop(f"{table.name}/table"), rows)
    layers = {name.replace(".layers.", "/").replace(".", "/"): x for name, x in
              model.dense.layers.items()}  # fmt: skip
    for name, array in layers.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {name for name in found if name.startswith(("bottom", "top"))} == layers.keys()
    files = {path.stem for path in (artifact / "layers").iterdir()}
    assert files == model.dense.layers.keys(), "--warm_start=ARTIFACT/layers reads them, too"


def test_what_would_mean_something_else(
    model: TrainedModel, learner: Learner, artifact: Path, tmp_path: Path
):
    artifact = shutil.copytree(artifact, tmp_path / "copy")
    with pytest.raises(UserError, match="the ids of these data aren't those of"):
        warm_start(learner, 0, artifact, ["C1"], ["other data"])
    with pytest.raises(UserError, match=r"has the labels label, and this run has a, b"):
        warm_start(learner, 0, artifact, ["all"], [model.data], labels=("a", "b"))
    wider = dataclasses.replace(model.config, top_mlp=(9, 1))
    with pytest.raises(UserError, match=r"top\.layers\.0\.\w+ must have shape"):
        warm_start(make_learner(wider, make_mesh("1x1")), 0, artifact, ["top"], [model.data])
    manifest = Manifest.read(artifact)
    small = tuple(dataclasses.replace(x, row_format="int8") for x in manifest.tables)
    dataclasses.replace(manifest, tables=small).write(artifact)
    with pytest.raises(UserError, match=r"table C1 .* has rows in int8, from which training"):
        warm_start(learner, 0, artifact, ["C1"], [model.data])
    dataclasses.replace(manifest, layers=(), dense_layers=None).write(artifact)
    with pytest.raises(UserError, match=r"has no layer 'top\.layers"):
        warm_start(learner, 0, artifact, ["top"], [model.data])
