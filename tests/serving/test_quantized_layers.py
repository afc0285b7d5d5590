"""Artifacts of DLRM with layers in bfloat16 and int8, and how their precision is chosen."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from in_memory import InMemory
from saved_run import examples

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.dense_note import MOST_INPUTS, LinearNote, Precision
from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.config import Config
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.serving.calibration import Calibration
from dlrm_jax.serving.export import export
from dlrm_jax.serving.layer_choice import LayerChoice, choose_layers
from dlrm_jax.serving.layer_quantization import Levels
from dlrm_jax.serving.quantized_layers import DenseLayers, check_quantizable, int8_arrays
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.serving.verify import PROGRAM, verify
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.warm_start import warm_start

RUN = Path(__file__).parents[1] / "previous" / "run_of_format_3"
DATA = RUN.parent / "data"
CONFIG = Config(
    table_rows=(9, 30, 30),
    bag_lengths=(1, 3, 2),
    embedding_dim=13,
    dense_features=3,
    bottom_mlp=(17, 13),
    top_mlp=(33, 1),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """Artifacts of one model."""
    directory = tmp_path_factory.mktemp("made")
    found: dict[Precision, Path] = {}
    for precision in ("float32", "bfloat16", "int8"):
        found[precision] = directory / precision
        rows = examples(300, config=CONFIG)
        model = InMemory.of(CONFIG)
        export(model, found[precision], precision, "float32", layers=precision, calibration=rows)
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_they_predict_what_float32_does(
    made: dict[Precision, Path], precision: Precision, tolerance: float
):
    split = examples(100, seed=1, config=CONFIG)
    expected = Predictor.load(made["float32"]).predict(split)
    predictor = Predictor.load(made[precision])
    assert str(predictor) == (
        f"Predictor(artifact {precision} of 3 tables in float32, layers in {precision})"
    )
    found = predictor.predict(split)
    assert np.ptp(expected) > 0.1, "nothing to compare"
    assert 1e-6 < np.abs(found - expected).max() < tolerance
    assert verify(made[precision]).golden[PROGRAM].difference == 0
    found = Manifest.read(made[precision])
    assert found.dense_layers
    assert found.dense_layers.precision == precision
    types = {x.name: x.dtype for x in found.layers if x.name.endswith("kernel")}
    assert types.pop("bottom.layers.0.kernel") == "bfloat16"
    assert set(types.values()) == {precision}
    sizes = [
        sum((path / "layers" / f"{name}.npy").stat().st_size - 128 for name in types)
        for path in (made["float32"], made[precision])
    ]
    assert sizes[0] == sizes[1] * (4 if precision == "int8" else 2)


def test_dense_features_in_units_of_their_own(tmp_path: Path):
    """A single scale for all of them would leave the small ones a level or two."""
    rows = examples(300, config=CONFIG)
    units = np.array([1, 30_000, 1e-3], np.float32)

    def scaled(path: Any, x: Any) -> Any:
        first = jax.tree_util.keystr(path, simple=True, separator=".") == "bottom.layers.0.kernel"
        return np.asarray(x) / units[:, None] if first else x

    model = InMemory.of(CONFIG)
    params = jax.tree_util.tree_map_with_path(scaled, model.state.params)
    model = dataclasses.replace(model, state=dataclasses.replace(model.state, params=params))
    days = (dataclasses.replace(x, dense=np.asarray(x.dense) * units) for x in rows.days)
    rows = Split(tuple(days))
    found = {}
    for precision in ("float32", "int8"):
        path = tmp_path / precision
        export(model, path, precision, "float32", layers=precision, calibration=rows)
        found[precision] = Predictor.load(path).predict(rows)
    assert np.ptp(found["float32"]) > 0.1, "nothing to compare"
    assert np.abs(found["int8"] - found["float32"]).max() < 0.05


@pytest.mark.parametrize("outlier", [10.0, 1e3, 1e6])
def test_a_single_outlier_leaves_levels_for_all_others(outlier: float):
    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    layer = LinearNote("a.kernel", "a.bias", relu=True)
    without = Calibration({"a.kernel": x}).levels(layer)
    x[7, 1] = outlier
    found = Calibration({"a.kernel": x}).levels(layer)
    assert found.levels == pytest.approx(without.levels, rel=0.2)
    assert Calibration({"a.kernel": x[:20]}).levels(layer).levels <= 255 / outlier * 9


def test_float32_is_noted_as_before(made: dict[Precision, Path]):
    text = (made["float32"] / "manifest.json").read_text(encoding="utf-8")
    assert '"relu": true' in text
    assert "precision" not in text
    assert "quantization" not in text


def test_integers_cannot_be_nan(made: dict[Precision, Path]):
    rows = examples(20, config=CONFIG).take(np.arange(20))
    dense, ids = np.array(rows.dense), np.asarray(rows.ids)
    dense[7, 1], dense[9, 0] = np.nan, np.inf
    # The first layer is bfloat16: one number is infinite there, the other one's products are.
    dense[11, 2], dense[12], dense[13, 2] = 3.4e38, -3.3e38, 1e30
    for precision in ("int8", "bfloat16"):
        logits = Artifact.load(made[precision]).logits(dense, ids)
        assert np.isnan(logits[7])
    artifact = Artifact.load(made["int8"])
    for way in (artifact, dataclasses.replace(artifact, native=None)):
        assert np.flatnonzero(~np.isfinite(way.logits(dense, ids))).tolist() == [7, 9, 11, 12]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["bottom.layers.1.kernel", "top.layers.0.bias"])
def test_weights_that_int8_has_not(name: str, value: float, tmp_path: Path):
    """They would become integers, and predictions finite."""
    model = InMemory.of(CONFIG)
    arrays = {x: np.array(y) for x, y in model.dense.layers.items()}
    arrays[name].flat[3] = value
    layers = dataclasses.replace(DenseLayers.of(model), arrays=arrays)
    check_quantizable(model, layers, "bfloat16")
    with pytest.raises(UserError, match=f"finite numbers for int8, {name} has NaN or infinity"):
        check_quantizable(model, layers, "int8")


def test_numbers_that_are_no_quantization(made: dict[Precision, Path], tmp_path: Path):
    damaged = shutil.copytree(made["int8"], tmp_path / "damaged")
    for name, value, message in (
        ("scale", np.zeros(33, np.float32), "expected finite numbers above 0"),
        ("levels", np.full(1, np.nan, np.float32), "expected finite numbers above 0"),
        ("zero", np.full(1, 128, np.int32), "expected a number from -128 to 127, it has 128"),
    ):
        path = damaged / "layers" / f"top.layers.0.{name}.npy"
        written = path.read_bytes()
        np.save(path, value)
        dataclasses.replace(Manifest.read(damaged), files=note_files(damaged)).write(damaged)
        with pytest.raises(DamagedArtifactError, match=rf"{path.name}: {message}"):
            Artifact.load(damaged)
        path.write_bytes(written)


def test_what_training_and_conversion_refuse(made: dict[Precision, Path], tmp_path: Path):
    learner = make_learner(CONFIG, make_mesh("1x1"))
    with pytest.raises(UserError, match=r"layers of .*int8 are in int8.*--layers=float32"):
        warm_start(learner, 0, made["int8"], ["top"], ["x"])
    for precision in ("int8", "bfloat16"):
        message = rf"its layers are in {precision}; give the run, .*--layers=float32"
        with pytest.raises(UserError, match=message):
            OwnModel.open(made[precision])
    export(InMemory.of(CONFIG), tmp_path / "both", "both", "int4", layers="bfloat16")
    message = r"has rows in integers, and its layers are in bfloat16; .*=float32 --layers=float32$"
    with pytest.raises(UserError, match=message):
        OwnModel.open(tmp_path / "both")
    assert OwnModel.open(made["float32"]).layers
    warm_start(learner, 0, made["bfloat16"], ["top"], ["x"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dcn"}, "the run is a model dcn; leave it out"),
        ({"interaction": "cat"}, "a model dlrm with interaction=cat; leave it out"),
        ({"normalization": "layer", "dropout": 0.5}, "with normalization=layer, dropout=0.5; "),
        ({"compute_dtype": "bfloat16"}, "a model dlrm with compute_dtype=bfloat16; "),
        ({"pooling": "learned"}, "a model dlrm with pooling=learned; "),
        (
            {"compression": "quotient_remainder", "compress_above": 20},
            "a model dlrm with compression=quotient_remainder; ",
        ),
        ({"numeric_embedding": "linear"}, "a model dlrm with numeric_embedding=linear; "),
    ],
)
def test_other_models(changes: dict[str, Any], message: str, tmp_path: Path):
    model = InMemory.of(dataclasses.replace(CONFIG, **changes))
    refused = ".* compressed tables, pooling=learned and numeric_embedding; .*"
    with pytest.raises(UserError, match=refused + message):
        export(model, tmp_path / "x", "x", "float32", layers="bfloat16")
    assert [*tmp_path.iterdir()] == []


def test_int8_needs_examples_and_few_inputs(tmp_path: Path):
    with pytest.raises(UserError, match="int8 is calibrated on examples of the run; give their"):
        export(InMemory.of(CONFIG), tmp_path / "x", "x", "float32", layers="int8")
    arrays = {"k": np.zeros((MOST_INPUTS + 1, 1), np.float32), "b": np.zeros(1, np.float32)}
    with pytest.raises(UserError, match="at most 32,768 inputs of a layer in int8, k has 32,769"):
        int8_arrays(LinearNote("k", "b", True), arrays, Levels.of_range(0, 1))


def test_the_choice_is_the_shortest_that_is_tolerated():
    aucs: dict[Precision, float] = {"int8": 0.8, "bfloat16": 0.89}
    for most, precision in ((0.2, "int8"), (0.05, "bfloat16"), (0.001, "float32")):
        found = choose_layers("int8", 0.9, aucs.__getitem__, most)
        assert found.precision == precision
        assert found.losses["int8"] == pytest.approx(0.1)
    found = choose_layers("bfloat16", 0.9, aucs.__getitem__, 0.5)
    assert found == LayerChoice("bfloat16", {"bfloat16": 0.9 - 0.89})


@pytest.mark.thorough
def test_layers_that_cost_too_much_are_as_trained(tmp_path: Path):
    model, data = TrainedModel.read(RUN), load_directory(DATA)
    done = export(model, tmp_path / "a", "a", "float32", data, 1.0, "int8")
    assert done.layers is not None
    assert done.layers.precision == "int8"
    of_test = done.manifest.metrics["test"]
    assert of_test["exported"] != of_test["trained"]
    kept = export(model, tmp_path / "b", "b", "int8", data, -1.0, "int8")
    assert kept.layers is not None
    assert kept.layers.precision == "float32"
    assert kept.layers.losses.keys() == {"int8", "bfloat16"}
    export(model, tmp_path / "c", "b", "int8", data, -1.0)
    for name, note in note_files(tmp_path / "c").items():
        if not name.startswith("programs/"):  # which name the lines that they were made by
            assert note_files(tmp_path / "b")[name] == note, name
